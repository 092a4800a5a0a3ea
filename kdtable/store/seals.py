"""Checksums of rows: what a disk, or a program that knows none, has changed is found when it is read.

Rows of runs, workers and teachers carry a ``seal`` over all their other columns (but a run's ``key``, which the
database gives). A run's row also has one over its epochs, and one over what tables show of it, so that a report of very
many runs need not read the rest. What protocols and origins hold is known by its own hash.
"""

import hashlib
import marshal
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from kdtable.store.schema import content_id, epochs, origins, protocols, runs, teachers, workers

#: Columns of an epoch, without the run that it belongs to.
EPOCH: Final = tuple(column.name for column in epochs.c if column.name != "run")

#: Those that differ whenever the same is trained.
TIMES: Final = ("seconds", "members", "waited")

#: Columns of a run that tables and warnings need, which have a seal of their own.
TABLED: Final = (
    *("id", "protocol_id", "status", "reason", "paper", "row", "student", "teacher", "teacher_sha256", "data"),
    *("test_images", "seed", "precision", "provenance", "last_top1", "last_top5", "best_top1", "best_top5"),
    *("lowest_top1", "lowest_top5", "branches"),
)

#: Runs that are sealed together.
AT_ONCE: Final = 500

_UNSEALED: Final = ("key", "table_seal", "seal")
_NAMES: Final = {table: {column.name: n for n, column in enumerate(table.c)} for table in (runs, workers, teachers)}


class Damage(Exception):
    """Something in a store is not what was written there. Where it is read, the message becomes a `BadRequest`."""


def seal(values: tuple[Any, ...]) -> str:
    """Checksum of texts, whole numbers, floats and ``None``, nested in tuples: 16 hex digits.

    ``marshal`` takes a third of the time of JSON, which very many runs would be felt by. Its format 2 is the same in
    every Python since 2.5; a test pins some seals.
    """
    return hashlib.blake2b(marshal.dumps(values, 2), digest_size=8).hexdigest()


def sealed(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """A whole row of runs, workers or teachers with its seal; what ``row`` lacks gets its default."""
    columns = [column for column in table.c if column.name not in _UNSEALED]
    values = {column.name: as_kept(column, row.get(column.name, _default(column))) for column in columns}
    if table is runs:  # the last columns are the seals, in this order
        values["table_seal"] = seal(tuple(values[name] for name in TABLED))
    return values | {"seal": seal(tuple(values.values()))}


def as_kept(column: sa.Column[Any], value: Any) -> Any:
    """A value as both kinds of database give it back.

    Raises:
        ValueError: no database does, of NaN: SQLite keeps nothing in its place, and the seal would never fit again.
    """
    if value is None:
        return None
    if isinstance(column.type, sa.Float):
        number = float(value) + 0.0  # SQLite keeps a zero without its sign
        if math.isnan(number):
            raise ValueError(f"{column.name} is NaN, which no store keeps")
        return number
    return int(value) if isinstance(column.type, sa.Integer) else str(value)


def _default(column: sa.Column[Any]) -> Any:
    if isinstance(column.default, sa.ColumnDefault):
        return column.default.arg
    return column.server_default.arg if isinstance(column.server_default, sa.DefaultClause) else None


def checked(table: sa.Table, rows: sa.CursorResult[Any]) -> Sequence[sa.Row[Any]]:
    """Rows of a query for all columns of the table, or for the key of runs, `TABLED` and their seal.

    Raises:
        Damage: one is not as it was written.
    """
    found = rows.all()
    first = "key" in table.c  # the key comes first where there is one, and the seal last
    for row in found:
        if seal(row[first:-1]) != row[-1]:
            raise Damage(f"the row of {table.name[:-1]} {row[first]} does not fit its checksum")
    return found


def epochs_seal(rows: Iterable[Sequence[Any]]) -> str | None:
    """The seal of a run's epochs, each of the values of `EPOCH`, in any order; ``None`` where there are none."""
    columns = [epochs.c[name] for name in EPOCH]
    in_order = sorted(rows, key=lambda values: (str(values[0]), str(values[1])))
    plain = tuple(tuple(map(as_kept, columns, values)) for values in in_order)
    return seal(plain) if plain else None


def check_epochs(run_id: str, expected: str | None, rows: Collection[Sequence[Any]]) -> None:
    """Compare a run's epochs with the seal that its row has.

    Raises:
        Damage: they are not what was written.
    """
    try:
        found = epochs_seal(rows)
    except (TypeError, ValueError):  # a text where a number was
        found = "unreadable"
    if found != expected:
        raise Damage(f"the epochs of run {run_id} do not fit their checksum")


def _contents(db: sa.Connection, table: sa.Table, query: sa.Select[Any]) -> dict[str, str]:
    """What protocols mean, or origins are, by id.

    Raises:
        Damage: one is not what its id is the hash of.
    """
    found: dict[str, str] = dict(tuple(row) for row in db.execute(query))
    for key, text in found.items():
        if not isinstance(text, str) or content_id(text) != key:
            raise Damage(f"what {table.name[:-1]} {key} holds does not fit its id")
    return found


def meanings(db: sa.Connection, only: Collection[str] | None = None) -> dict[str, str]:
    """Meanings without the seed, as JSON, of all protocols or of the ids ``only``."""
    query = sa.select(protocols)
    return _contents(db, protocols, query if only is None else query.where(protocols.c.id.in_(only)))


def sources(db: sa.Connection) -> dict[str, str]:
    """Origins, as JSON, by id."""
    return _contents(db, origins, sa.select(origins))


def change_runs(db: sa.Connection, query: sa.Select[Any], change: Mapping[str, Any]) -> Sequence[sa.Row[Any]]:
    """Change the runs of a query for all columns of the table, and seal them again; the runs as they were.

    Raises:
        Damage: one was not as it was written, and nothing is changed.
    """
    found = checked(runs, db.execute(query.with_for_update()))
    replace_runs(db, {row.key: {**row._mapping, **change} for row in found})
    return found


def replace_runs(db: sa.Connection, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Write whole rows of runs, by key, with their seals."""
    if rows:
        update = runs.update().where(runs.c.key == sa.bindparam("at"))
        names: dict[str, Any] = {
            column.name: sa.bindparam(f"new_{column.name}") for column in runs.c if column.name != "key"
        }
        given = [{f"new_{name}": v for name, v in sealed(runs, row).items()} | {"at": k} for k, row in rows.items()]
        db.execute(update.values({name: sa.bindparam(f"new_{name}") for name in names}), given)


def seal_all(db: sa.Connection) -> None:
    """Seal every row as it is now: of a store that had no seals."""
    for table in (workers, teachers):
        keys = [column.name for column in table.primary_key]
        for row in db.execute(sa.select(table)).mappings().all():
            place = [table.c[name] == row[name] for name in keys]
            db.execute(table.update().where(*place).values(seal=sealed(table, dict(row))["seal"]))
    known = list(db.execute(sa.select(runs.c.key)).scalars())
    for start in range(0, len(known), AT_ONCE):
        some = known[start : start + AT_ONCE]
        trained: dict[int, list[Sequence[Any]]] = {key: [] for key in some}
        columns = (epochs.c[name] for name in EPOCH)
        for key, *values in db.execute(sa.select(epochs.c.run, *columns).where(epochs.c.run.in_(some))):
            trained[key].append(values)
        rows = db.execute(sa.select(runs).where(runs.c.key.in_(some))).mappings().all()
        replace_runs(db, {row["key"]: {**row, "epochs_seal": epochs_seal(trained[row["key"]])} for row in rows})
