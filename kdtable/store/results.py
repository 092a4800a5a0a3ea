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
from sqlalchemy.dialects import postgresql, sqlite

from kdtable.store import database
from kdtable.store.files import run_folder
from kdtable.store.schema import epochs, origins, protocols, runs, teachers

#: Ids in one query; SQLite takes about 32,000, but its plans for long lists are slow to make.
AT_ONCE: Final = 1000


#: Columns of a run that no table shows.
_UNTABLED: Final = {
    *("last_epoch", "best_epoch", "wall_seconds", "terms", "created", "started", "finished", "claimed_by", "kept")
}


class Store:
    """Results: a database, and a folder of checkpoints.

    Accuracies are shares in [0, 1], times are UTC in ISO 8601, durations are seconds.

    Args:
        folder: where checkpoints and trained students lie, and the database where ``url`` names no other.
        url: of a PostgreSQL database.
        create: whether the store is to be changed, and made where it is absent; else it is only read.

    Raises:
        NoStore: there is none, and ``create`` is false.
        BadRequest: a newer schema, not a database, or a folder that cannot be written to.
    """

    def __init__(self, folder: Path, url: str | None = None, *, create: bool = True) -> None:
        self.folder = folder
        self.database = database.open_server(url, create=create) if url else database.open_folder(folder, create=create)
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
        with self.database.read() as db:
            return {
                run_id: status
                for some in batches(ids)
                for run_id, status in db.execute(sa.select(runs.c.id, runs.c.status).where(runs.c.id.in_(some))).all()
            }

    def all_runs(self, only: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Every run, or those of the ids ``only``, as a mapping of its columns, oldest first.

        ``meaning`` (without the seed) and ``provenance`` are JSON texts, and one object for all runs that share them.
        """
        return self._runs(runs.c, only)

    def tabled_runs(self, only: Collection[str] | None = None) -> list[dict[str, Any]]:
        """As :meth:`all_runs`, with no more columns than tables and warnings need: a store may hold very many runs."""
        return self._runs([column for column in runs.c if column.name not in _UNTABLED], only)

    def _runs(self, columns: Iterable[sa.Column[Any]], only: Collection[str] | None) -> list[dict[str, Any]]:
        query = sa.select(*columns).order_by(runs.c.key)
        with self.database.read() as db, _uncollected():
            meanings = {row.id: row.meaning for row in db.execute(sa.select(protocols))}
            histories = Histories(db)
            found = []
            for some in [None] if only is None else batches(only):
                result = db.execute(query if some is None else query.where(runs.c.id.in_(some)))
                names = list(result.keys())
                found += [dict(zip(names, values, strict=True)) for values in result.all()]
        for run in found:
            run["meaning"] = meanings[run["protocol_id"]]
            run["provenance"] = histories.text(run["provenance"])
        return found if only is None else sorted(found, key=lambda run: int(run["key"]))

    def epochs_of(self, run_id: str) -> list[dict[str, Any]]:
        """The epochs of a run, in order of training."""
        query = (
            sa.select(epochs)
            .join(runs, runs.c.key == epochs.c.run)
            .where(runs.c.id == run_id)
            .order_by(epochs.c.stage == "main", epochs.c.stage, epochs.c.epoch)
        )
        with self.database.read() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def teacher_accuracies(self) -> list[dict[str, Any]]:
        """Every measured teacher as a mapping of its columns."""
        with self.database.read() as db:
            return [dict(row) for row in db.execute(sa.select(teachers)).mappings()]

    # --- what changes ----------------------------------------------------------------------------------------

    def plan(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the runs that are not there yet.

        A row has the run's columns, and its ``meaning`` as JSON without the seed.
        """
        given = {row["id"]: row for row in rows}
        with self.database.write(alone=True) as db:
            known = {
                run_id
                for some in batches(given)
                for run_id in db.execute(sa.select(runs.c.id).where(runs.c.id.in_(some))).scalars()
            }
            new = [row for run_id, row in given.items() if run_id not in known]
            if new:
                meanings = {row["protocol_id"]: row["meaning"] for row in new}
                insert_new(db, protocols, [{"id": key, "meaning": text} for key, text in meanings.items()])
                made = {"created": now()}
                db.execute(runs.insert(), [{k: v for k, v in row.items() if k != "meaning"} | made for row in new])

    def reopen(self, ids: Iterable[str]) -> None:
        """Plan runs again that had failed, or whose method could not be run on their pair."""
        ended = runs.c.status.in_(("failed", "n/a"))
        with self.database.write(alone=True) as db:
            for some in batches(ids):
                again = runs.update().where(runs.c.id.in_(some), ended)
                db.execute(again.values(status="planned", reason=None, finished=None))

    def train_again(self, ids: Iterable[str]) -> None:
        """Plan done runs again whose weights were not kept: other runs need them now."""
        without = (runs.c.status == "done", runs.c.kept == "none")
        with self.database.write(alone=True) as db:
            for some in batches(ids):
                again = runs.update().where(runs.c.id.in_(some), *without)
                db.execute(again.values(status="planned", finished=None, kept=None))

    def record_teacher(self, row: Mapping[str, Any]) -> None:
        """Keep a teacher's accuracy on a data set, replacing an earlier measurement."""
        with self.database.write(alone=True) as db:
            db.execute(teachers.delete().where(teachers.c.sha256 == row["sha256"], teachers.c.data == row["data"]))
            db.execute(teachers.insert(), [dict(row)])


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection in the block: it takes a third of the time in which very many rows are read."""
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
        self._contents = {row.id: row.content for row in db.execute(sa.select(origins))}
        self._texts: dict[str, str] = {}

    def text(self, ids: str | None) -> str | None:
        """Provenance of a run whose column holds ``ids``."""
        if ids is None:
            return None
        if ids not in self._texts:
            self._texts[ids] = f"[{', '.join(self._contents[key] for key in json.loads(ids))}]"
        return self._texts[ids]


def insert_new(db: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows whose primary key is not there yet, and leave the others as they are."""
    insert = postgresql.insert if db.dialect.name == "postgresql" else sqlite.insert
    if rows:
        db.execute(insert(table).on_conflict_do_nothing(), list(rows))


def batches(ids: Iterable[str], size: int = AT_ONCE) -> Iterator[list[str]]:
    """``ids`` without repetitions, in lists that are short enough for one query."""
    left = iter(dict.fromkeys(ids))
    while some := list(islice(left, size)):
        yield some


def now() -> str:
    """The present moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
