"""Copy results from one store into another, without damaged files."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from kdtable.checkpoints import checkpoint, student
from kdtable.checkpoints.checkpoint import BadCheckpoint, NoAccess
from kdtable.errors import BadRequest, Trouble, several
from kdtable.files import remote
from kdtable.files.atomic import written_whole
from kdtable.store import address, shared
from kdtable.store.claims import gone
from kdtable.store.database import Database, open_folder, open_server
from kdtable.store.files import (
    CHECKPOINT,
    EPOCHS,
    ERROR,
    PREVIOUS,
    STUDENT,
    clear,
    older_folder,
    put_aside,
    run_folder,
)
from kdtable.store.maintenance.bulk import WholeRun, add_whole, whole_runs
from kdtable.store.records import measured
from kdtable.store.rows import Reader, batches, insert_new, teacher_records, teacher_row
from kdtable.store.schema import origins, results, runs, teachers
from kdtable.store.shared import SharedFile, files_in

#: Runs in one transaction: an interrupted copy can continue, and no other writer waits for long.
AT_ONCE: Final = 100

#: Differing runs that the error message names.
NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Copied:
    """The outcome of a copy.

    Attributes:
        copied: number of runs that were copied.
        there: number of runs that the target already had.
        files: whether checkpoints and students were copied.
        left_out: a clause for each damaged file that was left out.
    """

    copied: int
    there: int
    files: bool
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _End:
    """Source or target of a copy: a database, and its folder of files if it has one."""

    database: Database
    folder: Path | None


def copy(source: str, target: str) -> Copied:
    """Copy runs, epochs and teachers' accuracies; between folders also checkpoints and students.

    - A run that is done in both stores must be equal in both. Its student is copied if the target lacks it.
    - Of a run that was trained again by other code, the store where that was done has both results; so has the target.
    - A finished run replaces an unfinished one in the target. An unfinished run replaces nothing.
    - All runs are compared before the first is copied.
    - No run is copied in part. Calling again continues an interrupted copy.
    - A checkpoint or student that is damaged, or belongs to another run, is left out.

    Args:
        source: a results folder, or the URL of a database.
        target: likewise; made if it is missing.

    Raises:
        BadRequest: a store cannot be used, both are the same, or runs differ (the message names them).
        Trouble: a file cannot be copied, or a database cannot be written.
    """
    if _is_same(source, target):
        raise BadRequest(f"{address.without_password(source)} is both ends of the copy: name another store to copy to")
    with _opened(source, create=False) as start, _opened(target, create=True) as end:
        with start.database.read() as db:
            ids = list(db.execute(sa.select(runs.c.id).order_by(runs.c.key)).scalars())
        wanted: list[str] = []
        newer: set[str] = set()
        differing: list[str] = []
        for some in batches(ids, AT_ONCE):
            _compare_runs(start, end, some, wanted, newer, differing)
        if differing:
            raise BadRequest(f"nothing was copied: {several(differing, NAMED)}; copy into another store")
        bad: list[str] = []
        _copy_code(start, end)
        for some in batches(wanted, AT_ONCE):
            bad += _copy_runs(start, end, some)
        bad += _copy_lost_students(start, end, set(ids) - set(wanted) - newer)
        _copy_teachers(start, end)
    files = start.folder is not None and end.folder is not None
    return Copied(len(wanted), len(ids) - len(wanted), files, tuple(bad))


@dataclass(frozen=True, slots=True)
class Merged:
    """The outcome of a merge.

    Attributes:
        copied: number of runs that were copied.
        there: number of runs that the target already had when their turn came.
        sources: number of stores that were merged.
        left_out: a clause for each damaged file, and for each store, that was left out.
    """

    copied: int
    there: int
    sources: int
    left_out: tuple[str, ...]


def merge(sources: Sequence[str], target: str) -> Merged:
    """Copy several stores into one, as :func:`copy` does, in their order.

    A store that has other numbers than the target, or those before it, is left out; the others are merged all the same.

    Raises:
        BadRequest: one of the stores does not exist or is the target; nothing was copied then.
        Trouble: a file cannot be copied, or a database cannot be written.
    """
    for source in sources:
        if _is_same(source, target):
            raise BadRequest(f"{address.without_password(source)} is to be merged into itself: leave it out")
        with _opened(source, create=False):
            pass
    done: list[Copied] = []
    left_out: list[str] = []
    for source in sources:
        try:
            done.append(copy(source, target))
        except Trouble:
            raise
        except BadRequest as error:
            left_out.append(f"{address.without_password(source)}: {error}")
        else:
            left_out += done[-1].left_out
    return Merged(sum(one.copied for one in done), sum(one.there for one in done), len(done), tuple(left_out))


def _is_same(source: str, target: str) -> bool:
    if address.is_url(source) or address.is_url(target):
        return source == target
    return Path(source).resolve() == Path(target).resolve()


@contextmanager
def _opened(text: str, *, create: bool) -> Iterator[_End]:
    if address.is_url(text):
        end = _End(open_server(text, create=create), None)
    else:
        end = _End(open_folder(Path(text), create=create), Path(text))
    try:
        yield end
    finally:
        end.database.close()


def _compare_runs(
    start: _End, end: _End, ids: Sequence[str], wanted: list[str], newer: set[str], differing: list[str]
) -> None:
    """Append ids to copy to ``wanted``, and a clause for each conflicting run to ``differing``.

    Runs that the target has trained again since, or is about to, are added to ``newer``.
    """
    with end.database.read() as db:
        theirs = {run.id: run for run in whole_runs(db, ids)}
        training = _in_training(db, ids)
    with start.database.read() as db:
        ours = {run.id: run for run in whole_runs(db, list(theirs))}
    for run_id in ids:
        if run_id not in theirs:
            wanted.append(run_id)
        elif problem := _difference(start, ours[run_id], end, theirs[run_id]):
            differing.append(f"run {run_id} {problem}")
        elif ours[run_id].code in theirs[run_id].packed.keys() - {theirs[run_id].code}:
            newer.add(run_id)
        elif _adds(ours[run_id], theirs[run_id]):
            if run_id in training:
                differing.append(f"run {run_id} is being trained in the other store")
            else:
                wanted.append(run_id)


def _adds(run: WholeRun, other: WholeRun) -> bool:
    """Whether a run has a finished result that the target's run lacks."""
    if not other.record.done:
        return run.record.done
    return other.code in run.packed and not run.packed.keys() <= other.packed.keys()


def _difference(start: _End, run: WholeRun, end: _End, other: WholeRun) -> str | None:
    if run.record.protocol.identity != other.record.protocol.identity:
        return "has another identity in the other store"
    if run.record.done and other.record.done:
        # The newest that both have, if they have any of the same code.
        code = next((code for code in (other.code, run.code) if code in run.packed and code in other.packed), None)
        with start.database.explained("read"):
            given = measured(run.history(code))
        with end.database.explained("read"):
            found = measured(other.history(code))
        if given != found:
            return "has other numbers in the other store"
    return None


def _in_training(db: sa.Connection, ids: Sequence[str]) -> set[str]:
    """Those of ``ids`` claimed by a process that may still be alive."""
    free = {None, *gone(db)}
    query = sa.select(runs.c.id, runs.c.claimed_by).where(runs.c.id.in_(ids))
    return {row.id for row in db.execute(query) if row.claimed_by not in free}


def _copy_runs(start: _End, end: _End, ids: Sequence[str]) -> list[str]:
    """Copy runs with their files; return a clause for each file left out."""
    bad: list[str] = []
    with end.database.read() as db:
        training = _in_training(db, ids)
        done = sa.select(runs.c.id, runs.c.code).where(runs.c.id.in_(ids), runs.c.status == "done")
        current = {row.id: row.code for row in db.execute(done)}
    with start.database.read() as db:
        given = whole_runs(db, [run_id for run_id in ids if run_id not in training])
        elsewhere = files_in(db, [run.id for run in given])
    if start.folder and end.folder:  # files first: the database must not name files that are missing
        for run in given:
            target = run_folder(end.folder, run.id)
            if (other := current.get(run.id)) not in (None, run.code):
                put_aside(target, str(other))
            bad += _copy_files(run, run_folder(start.folder, run.id), target)
            bad += _fetch_files(elsewhere.get(run.id, []), target)
    with end.database.write(alone=True) as db:
        training = _in_training(db, ids)  # skip runs that a process claimed meanwhile
        add_whole(db, [run for run in given if run.id not in training])
    return bad


def _copy_files(run: WholeRun, source: Path, target: Path) -> list[str]:
    names = [STUDENT] if run.record.done else [CHECKPOINT, PREVIOUS, ERROR]
    kept = [source / name for name in names] + sorted((source / EPOCHS).glob("*.pt"))
    for older in (older_folder(source, code) for code in run.packed if code != run.code):
        kept += [older / STUDENT, *sorted((older / EPOCHS).glob("*.pt"))]
    bad = []
    for file in kept:
        if not file.exists():
            continue
        if problem := _problem(file, run.id):
            bad.append(problem)
        else:
            _copy_file(file, target / file.relative_to(source))
    clear(target, done=run.record.done)
    return bad


def _fetch_files(files: Sequence[SharedFile], target: Path) -> list[str]:
    """Fetch a run's student, or its newest checkpoint, from a URL; return a clause for each file left out.

    Raises:
        Trouble: it cannot be fetched.
    """
    bad = []
    wanted = [file for file in files if file.kind == shared.STUDENT] or list(files[:1])
    for file in wanted:
        name = STUDENT if file.kind == shared.STUDENT else CHECKPOINT
        try:
            remote.download(file.url, target / name, file.sha256)
        except (FileNotFoundError, remote.Mismatch):
            bad.append(f"{file.url} is gone or damaged")
        except OSError as error:
            raise Trouble(
                f"{file.url} cannot be copied to {target} ({error.strerror}): see to that, and copy again to go on"
            ) from error
    return bad


def _problem(file: Path, run: str) -> str | None:
    """What is wrong with a file of a run, as a clause; ``None`` if nothing is.

    Raises:
        Trouble: it cannot be opened.
    """
    if file.name == ERROR:  # plain text
        return None
    try:
        owner = student.load(file)[1].run if file.name == STUDENT else checkpoint.load(file).get("run")
    except NoAccess as error:
        raise Trouble(f"{error}: see to that, and copy again to go on") from error
    except BadCheckpoint as error:
        return str(error)
    return None if owner == run else f"{file} belongs to another run"


def _copy_lost_students(start: _End, end: _End, ids: Iterable[str]) -> list[str]:
    """Copy students that the target lacks, of runs done in both stores; return a clause for each file left out."""
    bad: list[str] = []
    if not (start.folder and end.folder):
        return bad
    for some in batches(ids):
        with end.database.read() as db:
            done = sa.select(runs.c.id).where(runs.c.id.in_(some), runs.c.status == "done", runs.c.kept != "none")
            kept = db.execute(done).scalars().all()
        for run_id in kept:
            here, there = (run_folder(folder, run_id) / STUDENT for folder in (start.folder, end.folder))
            if not here.exists() or there.exists():
                continue
            if problem := _problem(here, run_id):
                bad.append(problem)
            else:
                _copy_file(here, there)
    return bad


def _copy_file(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as stream, written_whole(target) as written:
            shutil.copyfileobj(stream, written)
    except OSError as error:
        raise Trouble(
            f"{source} cannot be copied to {target} ({error.strerror}): see to that, and copy again to go on"
        ) from error


def _copy_code(start: _End, end: _End) -> None:
    """Copy the lists of the files of the code that made the source's results."""
    with start.database.read() as db:
        reader = Reader(db)
        listed = db.execute(sa.select(results.c.provenance).distinct()).scalars().all()
        sources = {source for ids in listed for source in reader.provenance(ids).sources}
        given = [{"id": row.id, "content": row.content} for row in db.execute(sa.select(origins)) if row.id in sources]
    with end.database.write(alone=True) as db:
        insert_new(db, origins, given)


def _copy_teachers(start: _End, end: _End) -> None:
    with start.database.read() as db:
        given = [teacher_row(record) for record in teacher_records(db)]
    with end.database.write(alone=True) as db:
        insert_new(db, teachers, given)
