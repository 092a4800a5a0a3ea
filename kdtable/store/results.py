"""The store: read runs and results, plan runs. :mod:`kdtable.store.claims` writes results."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import sqlalchemy as sa

from kdtable.errors import BadRequest
from kdtable.garbage import uncollected
from kdtable.recipes.metrics import PROBES
from kdtable.recipes.record import EpochRecord
from kdtable.store import database
from kdtable.store.files import run_folder
from kdtable.store.patience import Patience
from kdtable.store.records import Result, RunRecord, TeacherRecord, newest, unpacked
from kdtable.store.rows import Reader, batches, insert_new, legible, now, run_row, teacher_records, teacher_row
from kdtable.store.schema import histories, origin_row, origins, protocol_row, protocols, results, runs, teachers


class Store:
    """A database of runs and results, and a folder of checkpoints.

        store = Store(Path("results"), create=False)
        done = [run for run in store.runs() if run.done]

    Args:
        folder: folder of checkpoints and trained students, and of the SQLite database unless ``url`` is given.
        url: URL of a PostgreSQL database.
        create: open for writing, and make the store if it is missing; else open read-only.
        patience: with a server that is away for a while; by default none.

    Raises:
        NoStore: there is none, and ``create`` is false.
        Damaged: its structure cannot be read.
        BadRequest: a store of another version, not a database, or a folder that cannot be written to.
    """

    def __init__(
        self, folder: Path, url: str | None = None, *, create: bool = True, patience: Patience | None = None
    ) -> None:
        self.folder = folder
        if url:
            self.database = database.open_server(url, create=create, patience=patience)
        else:
            self.database = database.open_folder(folder, create=create)
        if url and create:
            database.make_writable(folder)

    def close(self) -> None:
        """Release the database's connections."""
        self.database.close()

    def run_folder(self, run_id: str) -> Path:
        """The folder of a run's files."""
        return run_folder(self.folder, run_id)

    # --- read ------------------------------------------------------------------------------------------------

    def statuses(self, ids: Iterable[str]) -> dict[str, str]:
        """Status of each of ``ids`` that the store knows."""
        query = sa.select(runs.c.id, runs.c.status)
        with self.database.read() as db:
            return {row.id: row.status for some in batches(ids) for row in db.execute(query.where(runs.c.id.in_(some)))}

    def runs(self, only: Iterable[str] | None = None, code: str | None = None) -> list[RunRecord]:
        """All runs, or those of the ids ``only``, oldest first.

        Args:
            only: ids of runs; unknown ids are ignored.
            code: source hash of the results to read; by default each run's current result.
        """
        with self.database.read() as db, uncollected():
            return Reader(db).runs(only, code)

    def results(self, run_id: str) -> list[Result]:
        """All results of a run, one for each version of the code, oldest first."""
        with self.database.read() as db:
            reader = Reader(db)
            return [result for run in reader.runs([run_id]) for result in reader.results(run.key)]

    def history(self, run_id: str, code: str | None = None) -> tuple[EpochRecord, ...]:
        """The epochs of a run's current result, or of its result under ``code``, in order of training."""
        of = runs.c.code if code is None else code
        joined = runs.join(histories, sa.and_(histories.c.run == runs.c.key, histories.c.code == of))
        query = sa.select(histories.c.content).select_from(joined).where(runs.c.id == run_id)
        with self.database.read() as db, legible(f"the history of run {run_id}"):
            content = db.execute(query).scalar_one_or_none()
            return () if content is None else unpacked(content)

    def newest(self, ids: Iterable[str]) -> dict[str, tuple[int, EpochRecord]]:
        """Of the current results of runs, by id: number of epochs, and the newest. Runs without any are left out."""
        joined = runs.join(histories, sa.and_(histories.c.run == runs.c.key, histories.c.code == runs.c.code))
        query = sa.select(runs.c.id, histories.c.content).select_from(joined)
        with self.database.read() as db, legible("the history of a run"):
            rows = (row for some in batches(ids) for row in db.execute(query.where(runs.c.id.in_(some))))
            return {row.id: found for row in rows if (found := newest(row.content))}

    def epochs(self, ids: Iterable[str]) -> Counter[str]:
        """Number of epochs of the current results of runs, by id."""
        return Counter({run_id: count for run_id, (count, _) in self.newest(ids).items()})

    def code_files(self, sources: Iterable[str]) -> dict[str, Mapping[str, str]]:
        """The files of code and their hashes, by source hash; code that :meth:`record_code` never saw is left out."""
        with self.database.read() as db, legible("the files of the code"):
            query = sa.select(origins).where(origins.c.id.in_(set(sources)))
            return {row.id: json.loads(row.content) for row in db.execute(query)}

    def teacher_accuracies(self) -> list[TeacherRecord]:
        """Every measured teacher."""
        with self.database.read() as db:
            return teacher_records(db)

    # --- write -----------------------------------------------------------------------------------------------

    def plan(self, wanted: Iterable[RunRecord]) -> None:
        """Add the runs that the store lacks."""
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

    def record_code(self, files: Mapping[str, str]) -> None:
        """Store the hashes of the files of the code that trains here, by path."""
        with self.database.write(alone=True) as db:
            insert_new(db, origins, [origin_row(files)])

    def reopen(self, ids: Iterable[str]) -> None:
        """Mark failed and n/a runs of ``ids`` as planned again."""
        self._change(ids, runs.c.status.in_(("failed", "n/a")), status="planned", reason=None)

    def train_again(self, ids: Iterable[str]) -> None:
        """Mark done runs of ``ids`` whose weights were not kept as planned again: other runs need them."""
        without = sa.and_(runs.c.status == "done", runs.c.kept == "none")
        self._change(ids, without, status="planned", kept=None)

    def _change(self, ids: Iterable[str], where: sa.ColumnElement[bool], **values: str | None) -> None:
        with self.database.write(alone=True) as db:
            for some in batches(ids):
                db.execute(runs.update().where(runs.c.id.in_(some), where).values(values))

    def record_probe(self, run_id: str, found: Mapping[str, float]) -> None:
        """Store what linear probes measured of a finished run's student, with its current result.

        Args:
            run_id: the run.
            found: by names of `kdtable.recipes.metrics.PROBED`, as measured; earlier values of these are replaced.

        Raises:
            BadRequest: there is no such run, or it is not done.
        """
        query = sa.select(runs.c.key, runs.c.code, runs.c.epochs, results.c.chosen).where(
            runs.c.id == run_id, runs.c.status == "done", results.c.run == runs.c.key, results.c.code == runs.c.code
        )
        with self.database.write(alone=True) as db:
            row = db.execute(query).one_or_none()
            if row is None:
                raise BadRequest(f"run {run_id} has no result to store a probe with: train it again first")
            with legible(f"the result of run {run_id}"):
                chosen = json.loads(row.chosen)
                chosen[PROBES] = (row.epochs, {**chosen.get(PROBES, (0, {}))[1], **found})
            of_run = results.c.run == row.key, results.c.code == row.code
            db.execute(results.update().where(*of_run).values(chosen=json.dumps(chosen, allow_nan=False)))

    def record_teacher(self, record: TeacherRecord) -> None:
        """Store a teacher's metrics on a data set, replacing an earlier measurement."""
        with self.database.write(alone=True) as db:
            db.execute(teachers.delete().where(teachers.c.sha256 == record.sha256, teachers.c.data == record.data))
            db.execute(teachers.insert(), [teacher_row(record)])
