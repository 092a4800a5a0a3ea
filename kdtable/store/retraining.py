"""Results by other code: put aside so that their runs are trained again, brought back, or removed."""

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from kdtable.errors import Trouble
from kdtable.store.claims import gone
from kdtable.store.files import (
    CHECKPOINT,
    EPOCHS,
    PREVIOUS,
    bring_back,
    clear,
    drop_older,
    kept_in,
    older_folder,
    put_aside,
)
from kdtable.store.records import RunRecord
from kdtable.store.results import Store
from kdtable.store.rows import Reader, batches
from kdtable.store.schema import content_id, results, runs, teachers
from kdtable.store.shared import has_student, sweep

#: A run that is to be trained again has no current result.
_AGAIN: Final = {"status": "planned", "reason": None, "claimed_by": None, "code": None, "kept": None}


@dataclass(frozen=True, slots=True)
class Renewal:
    """What becomes of a run whose result was made by other code, or by another teacher.

    Attributes:
        of: hash of that result.
        teacher_sha256: checksum of the teacher that it is to learn from.
        retaught: whether that is another teacher: the older result then gets a hash that is no code's.
        back: hash of an older result that becomes the current one; ``None`` to train the run again.
    """

    of: str
    teacher_sha256: str | None = None
    retaught: bool = False
    back: str | None = None


def renew(store: Store, renewals: Mapping[str, Renewal], code: str) -> None:
    """Mark runs as planned, to be trained from their first epoch, or bring an older result back; in one transaction.

    A finished result stays beside the new one under the hash of its code, and its weights in a folder of that name. If
    the process is killed, the database still has it as the current one, and the next command puts its weights back. An
    unfinished result is dropped with its checkpoints. Runs that another process is training, or has trained since, are
    left alone.

    Args:
        store: the store.
        renewals: what becomes of each run, by id.
        code: hash of the code that trains. A finished result under this very hash gets another one.

    Raises:
        Trouble: a file cannot be moved.
    """
    with store.database.write(alone=True) as db:
        for row in _free(db, renewals):
            if row.code != renewals[row.id].of:
                continue
            folder = store.run_folder(row.id)
            with _movable(folder):
                values = _renewed(db, row, renewals[row.id], code, folder)
            db.execute(runs.update().where(runs.c.key == row.key).values(values))
            # What it reached as a teacher was measured on other weights.
            db.execute(teachers.delete().where(teachers.c.sha256 == row.id))


def _renewed(
    db: sa.Connection, row: sa.Row[Any], renewal: Renewal, code: str, folder: Path
) -> Mapping[str, str | None]:
    """Put a run's current result aside; return the run's changed columns."""
    _put_aside(db, row, folder)
    if renewal.back is not None:
        bring_back(folder, renewal.back)
        kept = kept_in(folder)
        if kept == "none" and has_student(db, row.key, renewal.back):
            kept = "last"
        return {**_AGAIN, "status": "done", "code": renewal.back, "kept": kept}
    for taken in {code, row.code} if renewal.retaught else {code}:
        _free_hash(db, row.key, taken, folder)
    return {**_AGAIN, "teacher_sha256": renewal.teacher_sha256}


def remove_older(store: Store, ids: Iterable[str]) -> int:
    """Remove the older results of runs, with their weights; return their number.

    Raises:
        Trouble: a file cannot be removed.
    """
    removed = 0
    for some in batches(ids):
        with store.database.write(alone=True) as db:
            found = older_of(db, some)
            for run_id, key, code in found:
                db.execute(results.delete().where(results.c.run == key, results.c.code == code))
                folder = store.run_folder(run_id)
                with _movable(folder):
                    drop_older(folder, code)
            removed += len(found)
        try:
            sweep(store, some)
        except OSError as error:
            raise Trouble(
                f"{error.filename} cannot be removed ({error.strerror}): see to that, and call again"
            ) from error
    return removed


def older_results(store: Store, ids: Collection[str] | None = None) -> list[RunRecord]:
    """Every finished result, of all runs or of a few, that is not its run's current one: as that of a done run."""
    with store.database.read() as db:
        reader = Reader(db)
        codes = {(run_id, code) for run_id, _, code in older_of(db) if ids is None or run_id in ids}
        found = reader.runs({run_id for run_id, _ in codes})
        return [
            replace(run, result=result, status="done")
            for run in found
            for result in reader.results(run.key)
            if result.finished and (run.id, result.code) in codes
        ]


def older_of(db: sa.Connection, ids: Iterable[str] | None = None) -> list[tuple[str, int, str]]:
    """Id, key and hash of the code of every result, of all runs or of a few, that is not its run's current one."""
    joined = runs.join(results, results.c.run == runs.c.key)
    other = sa.or_(runs.c.code.is_(None), runs.c.code != results.c.code)
    query = sa.select(runs.c.id, runs.c.key, results.c.code).select_from(joined).where(other)
    if ids is not None:
        query = query.where(runs.c.id.in_(list(ids)))
    return [(row.id, row.key, row.code) for row in db.execute(query.order_by(runs.c.key, results.c.started))]


def _free(db: sa.Connection, ids: Iterable[str]) -> list[sa.Row[Any]]:
    """Id, key, hash and end of the current result of those of ``ids`` that no living process is training."""
    joined = runs.outerjoin(results, sa.and_(results.c.run == runs.c.key, results.c.code == runs.c.code))
    query: sa.Select[Any] = sa.select(runs.c.id, runs.c.key, runs.c.code, results.c.finished).select_from(joined)
    free = sa.or_(runs.c.claimed_by.is_(None), runs.c.claimed_by.in_(gone(db)))
    return [row for some in batches(ids) for row in db.execute(query.where(free, runs.c.id.in_(some))).all()]


def _put_aside(db: sa.Connection, row: sa.Row[Any], folder: Path) -> None:
    """Make room for another result: move the weights of a finished one, drop an unfinished one."""
    if row.finished:
        put_aside(folder, row.code)
    else:
        # Files first: without them a run that the database still has as begun begins again.
        for path in (folder / CHECKPOINT, folder / PREVIOUS):
            path.unlink(missing_ok=True)
        if (folder / EPOCHS).is_dir():
            shutil.rmtree(folder / EPOCHS)
        db.execute(results.delete().where(results.c.run == row.key, results.c.code == row.code))  # with its history
    clear(folder, done=True)


def _free_hash(db: sa.Connection, key: int, code: str, folder: Path) -> None:
    """Give a finished result under ``code``, if there is one, another hash."""
    of_code = (results.c.run == key, results.c.code == code)
    finished = db.execute(sa.select(results.c.finished).where(*of_code)).scalar()
    if finished:
        other = content_id(f"{code} {finished}")
        db.execute(results.update().where(*of_code).values(code=other))  # with its history
        if (older := older_folder(folder, code)).is_dir():
            older.replace(older_folder(folder, other))


@contextmanager
def _movable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise Trouble(f"{where} cannot be moved ({error.strerror}): see to that, and call again") from error
