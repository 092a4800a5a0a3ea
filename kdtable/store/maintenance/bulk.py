"""Whole runs with their epochs, read and written many at a time."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from kdtable.store.results import Histories, batches, insert_new, meaning_of, rows_of
from kdtable.store.schema import epochs, origin_row, origins, protocol_row, protocols, runs
from kdtable.store.seals import EPOCH, check_epochs, epochs_seal, meanings, replace_runs, sealed

#: Columns of a run that are a store's own affair.
_OWN: Final = ("key", "claimed_by", "seal")


@dataclass(frozen=True, slots=True)
class WholeRun:
    """A run as it is kept.

    Attributes:
        columns: as :meth:`Store.all_runs` gives them, ``meaning`` and ``provenance`` as JSON.
        epochs: the values of `EPOCH` for each of its epochs.
    """

    columns: Mapping[str, Any]
    epochs: Sequence[Sequence[Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Its identity."""
        return str(self.columns["id"])

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return bool(self.columns["status"] == "done")


def whole_runs(db: sa.Connection, ids: Sequence[str]) -> list[WholeRun]:
    """Those of ``ids``, a few hundred at most, that are there, in the order in which they were planned.

    Raises:
        Damage: one is not as it was written.
    """
    rows = [dict(row._mapping) for row in rows_of(db, ids)]
    texts = meanings(db, {row["protocol_id"] for row in rows})
    histories = Histories(db)
    found: dict[int, dict[str, Any]] = {
        row["key"]: row | {"meaning": meaning_of(row, texts), "provenance": histories.text(row["provenance"])}
        for row in rows
    }
    trained: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    query = sa.select(epochs.c.run, *(epochs.c[name] for name in EPOCH))
    for key, *values in db.execute(query.where(epochs.c.run.in_(list(found)))).all():
        trained[key].append(tuple(values))
    for key, columns in found.items():
        check_epochs(columns["id"], columns["epochs_seal"], trained[key])
    return [WholeRun(columns, sorted(trained[key])) for key, columns in sorted(found.items())]


def add_whole(db: sa.Connection, given: Iterable[WholeRun]) -> None:
    """Add runs with all their epochs; those of their ids that are there are replaced."""
    new = {run.id: run for run in given}
    known = {
        row.id: row.key
        for some in batches(new)
        for row in db.execute(sa.select(runs.c.id, runs.c.key).where(runs.c.id.in_(some)))
    }
    made = {row["id"]: row for run in new.values() for row in _origins(run)}
    insert_new(db, origins, list(made.values()))
    texts = {run.columns["protocol_id"]: run.columns["meaning"] for run in new.values()}
    insert_new(db, protocols, [protocol_row(key, text) for key, text in texts.items()])
    for key in known.values():
        db.execute(epochs.delete().where(epochs.c.run == key))
    replace_runs(db, {key: _row(new[run_id]) for run_id, key in known.items()})
    rows = [sealed(runs, _row(run)) for run_id, run in new.items() if run_id not in known]
    if rows:
        db.execute(runs.insert(), rows)
    keys = {
        row.id: row.key
        for some in batches(new)
        for row in db.execute(sa.select(runs.c.id, runs.c.key).where(runs.c.id.in_(some)))
    }
    _add_epochs(db, ((keys[run_id], *values) for run_id, run in new.items() for values in run.epochs))


def _origins(run: WholeRun) -> list[dict[str, str]]:
    return [origin_row(origin) for origin in json.loads(run.columns["provenance"] or "[]")]


def _row(run: WholeRun) -> dict[str, Any]:
    ids = [row["id"] for row in _origins(run)]
    # What trains in one store is not trained in another one: there, it can be gone on with.
    status = "planned" if run.columns["status"] == "running" else run.columns["status"]
    kept = {name: value for name, value in run.columns.items() if name not in _OWN}
    trained = {"epochs_seal": epochs_seal(run.epochs)}
    return kept | trained | {"status": status, "claimed_by": None, "provenance": json.dumps(ids) if ids else None}


def _add_epochs(db: sa.Connection, rows: Iterable[Sequence[Any]]) -> None:
    """Insert epochs as the database takes them fastest: there may be millions."""
    names = ", ".join(("run", *EPOCH))
    if db.dialect.name == "postgresql":
        cursor = db.connection.cursor()
        with cursor.copy(f"COPY epochs ({names}) FROM STDIN") as stream:
            for row in rows:
                stream.write_row(row)
        return
    marks = ", ".join("?" * (len(EPOCH) + 1))
    if listed := [tuple(row) for row in rows]:
        db.exec_driver_sql(f"INSERT INTO epochs ({names}) VALUES ({marks})", listed)
