"""The store as everybody sees it: what is known of runs, and what is planned."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from kdtable.recipes.record import EpochRecord
from kdtable.store import database
from kdtable.store.files import run_folder
from kdtable.store.records import Result, RunRecord, TeacherRecord, unpacked
from kdtable.store.rows import Reader, batches, insert_new, legible, now, run_row, teacher_records, teacher_row
from kdtable.store.schema import histories, protocol_row, protocols, runs, teachers


class Store:
    """Results: a database, and a folder of checkpoints.

    Args:
        folder: where checkpoints and trained students lie, and the database where ``url`` names no other.
        url: of a PostgreSQL database.
        create: whether the store is to be changed, and made where it is absent; else it is only read.

    Raises:
        NoStore: there is none, and ``create`` is false.
        Damaged: its structure cannot be read.
        BadRequest: another version's store, not a database, or a folder that cannot be written to.
    """

    def __init__(self, folder: Path, url: str | None = None, *, create: bool = True) -> None:
        self.folder = folder
        if url:
            self.database = database.open_server(url, create=create)
        else:
            self.database = database.open_folder(folder, create=create)
        if url and create:
            database.make_writable(folder)

    def close(self) -> None:
        """Release the database's connections."""
        self.database.close()

    def run_folder(self, run_id: str) -> Path:
        """Where the files of a run lie."""
        return run_folder(self.folder, run_id)

    # --- what is known ---------------------------------------------------------------------------------------

    def statuses(self, ids: Iterable[str]) -> dict[str, str]:
        """Status of each of ``ids`` that the store knows."""
        query = sa.select(runs.c.id, runs.c.status)
        with self.database.read() as db:
            return {row.id: row.status for some in batches(ids) for row in db.execute(query.where(runs.c.id.in_(some)))}

    def runs(self, only: Iterable[str] | None = None, code: str | None = None) -> list[RunRecord]:
        """Every run, or those of the ids ``only``, oldest first.

        Args:
            only: ids of runs; those that the store does not know are left out.
            code: hash of the code whose results are wanted; by default each run's current one.
        """
        with self.database.read() as db, uncollected():
            return Reader(db).runs(only, code)

    def results(self, run_id: str) -> list[Result]:
        """All results of a run, one for each state of the code that was kept apart, the first begun first."""
        with self.database.read() as db:
            reader = Reader(db)
            return [result for run in reader.runs([run_id]) for result in reader.results(run.key)]

    def history(self, run_id: str, code: str | None = None) -> tuple[EpochRecord, ...]:
        """The epochs of a run in order of training: of its current result, or of that of a ``code``."""
        of = runs.c.code if code is None else code
        joined = runs.join(histories, sa.and_(histories.c.run == runs.c.key, histories.c.code == of))
        query = sa.select(histories.c.content).select_from(joined).where(runs.c.id == run_id)
        with self.database.read() as db, legible(f"the history of run {run_id}"):
            content = db.execute(query).scalar_one_or_none()
            return () if content is None else unpacked(content)

    def teacher_accuracies(self) -> list[TeacherRecord]:
        """Every measured teacher."""
        with self.database.read() as db:
            return teacher_records(db)

    # --- what changes ----------------------------------------------------------------------------------------

    def plan(self, wanted: Iterable[RunRecord]) -> None:
        """Add the runs that are not there yet."""
        given = {run.id: run for run in wanted}
        with self.database.write(alone=True) as db:
            query = sa.select(runs.c.id)
            for some in batches(given):
                for known in db.execute(query.where(runs.c.id.in_(some))).scalars().all():
                    del given[known]
            if given:
                shared = {run.protocol.id: run.protocol for run in given.values()}
                insert_new(db, protocols, [protocol_row(protocol) for protocol in shared.values()])
                db.execute(runs.insert(), [run_row(run) | {"created": now()} for run in given.values()])

    def reopen(self, ids: Iterable[str]) -> None:
        """Plan runs again that had failed, or whose method could not be run on their pair."""
        self._change(ids, runs.c.status.in_(("failed", "n/a")), status="planned", reason=None)

    def train_again(self, ids: Iterable[str]) -> None:
        """Plan done runs again whose weights were not kept: other runs need them now."""
        without = sa.and_(runs.c.status == "done", runs.c.kept == "none")
        self._change(ids, without, status="planned", kept=None)

    def _change(self, ids: Iterable[str], where: sa.ColumnElement[bool], **values: str | None) -> None:
        with self.database.write(alone=True) as db:
            for some in batches(ids):
                db.execute(runs.update().where(runs.c.id.in_(some), where).values(values))

    def record_teacher(self, record: TeacherRecord) -> None:
        """Keep a teacher's accuracy on a data set, replacing an earlier measurement."""
        with self.database.write(alone=True) as db:
            db.execute(teachers.delete().where(teachers.c.sha256 == record.sha256, teachers.c.data == record.data))
            db.execute(teachers.insert(), [teacher_row(record)])


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection in the block: it takes a third of the time in which very many rows are read or sorted."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
