"""The store as everybody sees it: what is known of runs, and what is planned."""

import gc
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from kdtable.store import database
from kdtable.store.files import run_folder
from kdtable.store.schema import epochs, protocol_row, protocols, runs, teachers
from kdtable.store.seals import EPOCH, TABLED, Damage, change_runs, check_epochs, checked, meanings, sealed, sources

#: Ids in one query; SQLite takes about 32,000, but its plans for long lists are slow to make.
AT_ONCE: Final = 1000

#: Columns of a run that are the store's own, the last of its row.
_SEALS: Final = ("epochs_seal", "table_seal", "seal")


class Store:
    """Results: a database, and a folder of checkpoints.

    Accuracies are shares in [0, 1], times are UTC in ISO 8601, durations are seconds.

    Args:
        folder: where checkpoints and trained students lie, and the database where ``url`` names no other.
        url: of a PostgreSQL database.
        create: whether the store is to be changed, and made where it is absent; else it is only read.
        unchecked: whether its structure is not looked over; of a store that is only read.
        scanned: whether all runs are read and none is looked up by its id, which takes less looking over; likewise.

    Raises:
        NoStore: there is none, and ``create`` is false.
        Damaged: its structure is not whole.
        BadRequest: a newer schema, not a database, or a folder that cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        url: str | None = None,
        *,
        create: bool = True,
        unchecked: bool = False,
        scanned: bool = False,
    ) -> None:
        self.folder = folder
        if url:
            self.database = database.open_server(url, create=create)
        else:
            self.database = database.open_folder(folder, create=create, unchecked=unchecked, scanned=scanned)
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
        return {run_id: row["status"] for run_id, row in self.known(ids).items()}

    def known(self, ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """The columns of each of ``ids`` that the store knows, as they are kept."""
        with self.database.read() as db:
            return {row.id: dict(row._mapping) for row in rows_of(db, ids)}

    def all_runs(self, only: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Every run, or those of the ids ``only``, as a mapping of its columns, oldest first.

        ``meaning`` (without the seed) and ``provenance`` are JSON texts, and one object for all runs that share them.
        """
        return self._runs(list(runs.c), only)

    def tabled_runs(self, only: Collection[str] | None = None) -> list[dict[str, Any]]:
        """As :meth:`all_runs`, with no more columns than tables and warnings need: a store may hold very many runs."""
        return self._runs([runs.c.key, *(runs.c[name] for name in TABLED), runs.c.table_seal], only)

    def _runs(self, columns: Sequence[sa.Column[Any]], only: Collection[str] | None) -> list[dict[str, Any]]:
        names = [column.name for column in columns if column.name not in _SEALS]
        with self.database.read() as db, uncollected():
            texts = meanings(db)
            histories = Histories(db)
            found = [dict(zip(names, row, strict=False)) for row in rows_of(db, only, columns)]
            for run in found:
                run["meaning"] = meaning_of(run, texts)
                run["provenance"] = histories.text(run["provenance"])
        return found if only is None else sorted(found, key=lambda run: int(run["key"]))

    def epochs_of(self, run_id: str) -> list[dict[str, Any]]:
        """The epochs of a run, in order of training."""
        with self.database.read() as db:
            for run in rows_of(db, [run_id]):
                found = db.execute(sa.select(*(epochs.c[name] for name in EPOCH)).where(epochs.c.run == run.key)).all()
                check_epochs(run_id, run.epochs_seal, found)
                trained = [{"run": run.key, **row._mapping} for row in found]
                return sorted(trained, key=lambda e: (e["stage"] == "main", e["stage"], e["epoch"]))
        return []

    def teacher_accuracies(self) -> list[dict[str, Any]]:
        """Every measured teacher as a mapping of its columns."""
        with self.database.read() as db:
            found = checked(teachers, db.execute(sa.select(teachers)))
        return [{name: value for name, value in row._mapping.items() if name != "seal"} for row in found]

    # --- what changes ----------------------------------------------------------------------------------------

    def plan(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the runs that are not there yet.

        A row has the run's columns, and its ``meaning`` as JSON without the seed.
        """
        given = {row["id"]: row for row in rows}
        with self.database.write(alone=True) as db:
            known = {row.id for row in rows_of(db, given)}
            new = [row for run_id, row in given.items() if run_id not in known]
            if new:
                texts = {row["protocol_id"]: row["meaning"] for row in new}
                insert_new(db, protocols, [protocol_row(key, text) for key, text in texts.items()])
                made = {"created": now()}
                db.execute(runs.insert(), [sealed(runs, {**row, **made}) for row in new])

    def reopen(self, ids: Iterable[str]) -> None:
        """Plan runs again that had failed, or whose method could not be run on their pair."""
        ended = runs.c.status.in_(("failed", "n/a"))
        with self.database.write(alone=True) as db:
            for some in batches(ids):
                again = sa.select(runs).where(runs.c.id.in_(some), ended)
                change_runs(db, again, {"status": "planned", "reason": None, "finished": None})

    def train_again(self, ids: Iterable[str]) -> None:
        """Plan done runs again whose weights were not kept: other runs need them now."""
        without = (runs.c.status == "done", runs.c.kept == "none")
        with self.database.write(alone=True) as db:
            for some in batches(ids):
                again = sa.select(runs).where(runs.c.id.in_(some), *without)
                change_runs(db, again, {"status": "planned", "finished": None, "kept": None})

    def record_teacher(self, row: Mapping[str, Any]) -> None:
        """Keep a teacher's accuracy on a data set, replacing an earlier measurement."""
        with self.database.write(alone=True) as db:
            db.execute(teachers.delete().where(teachers.c.sha256 == row["sha256"], teachers.c.data == row["data"]))
            db.execute(teachers.insert(), [sealed(teachers, row)])


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


class Histories:
    """Provenance as readers know it: a JSON list of origins, from the list of their ids that a run has."""

    def __init__(self, db: sa.Connection) -> None:
        self._contents = sources(db)
        self._texts: dict[str, str] = {}

    def text(self, ids: str | None) -> str | None:
        """Provenance of a run whose column holds ``ids``."""
        if ids is None:
            return None
        if ids not in self._texts:
            try:
                listed = json.loads(ids)
                lost = [key for key in listed if key not in self._contents]
            except (TypeError, ValueError) as error:  # of a query that compares no checksums
                raise Damage("where runs came from cannot be read") from error
            if lost:
                raise Damage(f"origin {lost[0]}, which runs came from, is lost")
            self._texts[ids] = f"[{', '.join(self._contents[key] for key in listed)}]"
        return self._texts[ids]


def rows_of(
    db: sa.Connection, only: Iterable[str] | None = None, columns: Sequence[sa.Column[Any]] = tuple(runs.c)
) -> Iterator[sa.Row[Any]]:
    """Whole rows of every run, oldest first, or of the ids ``only``; or those ``columns`` that have a seal together.

    Raises:
        Damage: one is not as it was written.
    """
    query = sa.select(*columns).order_by(runs.c.key)
    if only is None:
        yield from checked(runs, db.execute(query))
        return
    for some in batches(only):
        found = checked(runs, db.execute(query.where(runs.c.id.in_(some))))
        if not {row.id for row in found} <= set(some):
            raise Damage("its index of runs leads to other runs")
        yield from found


def meaning_of(run: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """What a run means, from what all protocols do.

    Raises:
        Damage: it is lost.
    """
    if run["protocol_id"] not in texts:
        raise Damage(f"what run {run['id']} means is lost")
    return texts[run["protocol_id"]]


def insert_new(db: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows whose primary key is not there yet, and leave the others as they are."""
    if not rows:
        return
    insert: Any = sqlite.insert
    if db.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # its many drivers take a quarter of the store's time to import

        insert = postgresql.insert
    db.execute(insert(table).on_conflict_do_nothing(), list(rows))


def batches(ids: Iterable[str], size: int = AT_ONCE) -> Iterator[list[str]]:
    """``ids`` without repetitions, in lists that are short enough for one query."""
    left = iter(dict.fromkeys(ids))
    while some := list(islice(left, size)):
        yield some


def now() -> str:
    """The present moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
