"""Files of runs at URLs (``--checkpoints``): which there are, whose they are, and which can go."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from kdtable.errors import Trouble
from kdtable.files import remote
from kdtable.store.files import STUDENT as STUDENT_FILE
from kdtable.store.results import Store
from kdtable.store.rows import batches
from kdtable.store.schema import runs, shared_files

CHECKPOINT: Final = "checkpoint"
STUDENT: Final = "student"

#: Checkpoints of an unfinished run: the newest, and the one before for the case that it is damaged.
CHECKPOINTS: Final = 2

#: Of a run's current result.
_CURRENT: Final = sa.and_(shared_files.c.result_run == runs.c.key, shared_files.c.result_code == runs.c.code)
_COLUMNS: Final = [shared_files.c[name] for name in ("url", "run", "kind", "attempt", "epochs", "sha256", "size")]


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file at a URL.

    Attributes:
        url: where it is.
        run: id of its run.
        kind: ``checkpoint`` or ``student``.
        attempt: number of the claim by which it was written.
        epochs: how many the run had behind it.
        sha256: of its content.
        size: in bytes.
    """

    url: str
    run: str
    kind: str
    attempt: int
    epochs: int
    sha256: str
    size: int


def prepare(store: Store) -> None:
    """Make room for such files in a store."""
    with store.database.write(alone=True) as db:
        shared_files.create(db, checkfirst=True)


def files_of(store: Store, ids: Iterable[str], kind: str | None = None) -> Mapping[str, list[SharedFile]]:
    """The files of runs' current results, all or of one kind, by run id; of each run the newest first."""
    with store.database.read() as db:
        return files_in(db, ids, kind)


def files_in(db: sa.Connection, ids: Iterable[str], kind: str | None = None) -> Mapping[str, list[SharedFile]]:
    """See :func:`files_of`."""
    found: dict[str, list[SharedFile]] = {}
    if exists(db):
        query = sa.select(*_COLUMNS).join(runs, _CURRENT)
        if kind is not None:
            query = query.where(shared_files.c.kind == kind)
        query = query.order_by(shared_files.c.attempt.desc(), shared_files.c.epochs.desc())
        for some in batches(ids):
            for row in db.execute(query.where(shared_files.c.run.in_(some))):
                found.setdefault(row.run, []).append(SharedFile(*row))
    return found


def exists(db: sa.Connection) -> bool:
    """Whether a store has a table of such files."""
    return sa.inspect(db).has_table(shared_files.name)


def announce(db: sa.Connection, file: SharedFile) -> None:
    """Note a file that is about to be written."""
    db.execute(shared_files.insert().values(asdict(file)))


def commit(db: sa.Connection, url: str, key: int, code: str) -> None:
    """Make a written file one of the result of the run ``key`` under ``code``."""
    db.execute(shared_files.update().where(shared_files.c.url == url).values(result_run=key, result_code=code))


def withdraw(db: sa.Connection, key: int, code: str, keep: int) -> None:
    """Let go of a result's checkpoints, but for the newest ``keep``."""
    of = (shared_files.c.result_run == key, shared_files.c.result_code == code, shared_files.c.kind == CHECKPOINT)
    newest = sa.select(shared_files.c.url).where(*of)
    newest = newest.order_by(shared_files.c.attempt.desc(), shared_files.c.epochs.desc())
    let_go(db, list(db.execute(newest.offset(keep)).scalars()))


def of_finished(db: sa.Connection) -> list[tuple[SharedFile, str, bool]]:
    """Every file of a finished run, what is to be kept of that, and whether the file belongs to a result."""
    if not exists(db):
        return []
    query = sa.select(*_COLUMNS, runs.c.kept, shared_files.c.result_run.is_not(None))
    query = query.join(runs, runs.c.id == shared_files.c.run).where(runs.c.status == "done").order_by(runs.c.key)
    return [(SharedFile(*row[:-2]), *row[-2:]) for row in db.execute(query)]


def let_go(db: sa.Connection, urls: Iterable[str]) -> None:
    """Make files belong to no result, so that :func:`sweep` removes them."""
    for some in batches(urls):
        these = shared_files.c.url.in_(some)
        db.execute(shared_files.update().where(these).values(result_run=None, result_code=None))


def has_student(db: sa.Connection, key: int, code: str) -> bool:
    """Whether there is a student of the result of the run ``key`` under ``code``."""
    of = (shared_files.c.result_run == key, shared_files.c.result_code == code, shared_files.c.kind == STUDENT)
    return exists(db) and db.execute(sa.select(shared_files.c.url).where(*of)).first() is not None


def sweep(store: Store, ids: Iterable[str], attempt: int | None = None) -> None:
    """Remove the files of runs that belong to no result.

    Args:
        store: the store.
        ids: of the runs.
        attempt: number of the caller's claim of them: files of later claims may be on their way. Without one, runs that
            are in training are left alone.

    Raises:
        OSError: a file cannot be removed; what is left is tried again next time.
    """
    with store.database.read() as db:
        if not exists(db):
            return
        query = sa.select(shared_files.c.url).where(shared_files.c.result_run.is_(None))
        if attempt is None:
            training = sa.select(runs.c.id).where(runs.c.status == "running")
            query = query.where(shared_files.c.run.not_in(training))
        else:
            query = query.where(shared_files.c.attempt <= attempt)
        urls = [url for some in batches(ids) for url in db.execute(query.where(shared_files.c.run.in_(some))).scalars()]
    for url in urls:
        remote.remove(url, with_folder=True)
        with store.database.write() as db:
            db.execute(shared_files.delete().where(shared_files.c.url == url))


def bring_student(store: Store, run_id: str) -> Path:
    """The path of a run's student, which is fetched into the run's folder if it is at a URL.

    Raises:
        Trouble: it cannot be fetched.
    """
    path = store.run_folder(run_id) / STUDENT_FILE
    for file in files_of(store, [run_id], STUDENT).get(run_id, [])[:1]:
        try:
            if not path.exists() or remote.digest(path) != file.sha256:
                remote.download(file.url, path, file.sha256)
        except OSError as error:
            where = error.filename or file.url
            raise Trouble(
                f"the student of run {run_id} cannot be fetched: {where} cannot be used ({error.strerror})"
            ) from error
        except remote.Mismatch as error:
            raise Trouble(
                f"the student of run {run_id} cannot be fetched: {error}; train it into another store"
            ) from error
    return path
