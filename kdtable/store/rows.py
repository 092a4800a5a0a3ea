"""Convert between database rows and records; helpers of queries."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from kdtable.recipes.metrics import Metric
from kdtable.store.integrity import Damage
from kdtable.store.records import Protocol, Provenance, Result, RunRecord, TeacherRecord
from kdtable.store.schema import origins, protocols, results, runs, teachers

#: Ids in one query. SQLite takes about 32,000, but plans long lists slowly.
AT_ONCE: Final = 1000

#: Columns of runs and results with the same names in the records.
_RUN: Final = ("id", "paper", "row", "student", "teacher", "teacher_sha256", "data", "test_images", "seed", "precision")
_STATE: Final = ("epochs", "status", "reason", "created", "claimed_by", "attempt", "kept", "key")
_RESULT: Final = (
    "code",
    "started",
    "finished",
    "parameters",
    "method_parameters",
    "wall_seconds",
    "waited_seconds",
    "cpu_seconds",
)


@contextmanager
def legible(what: str) -> Iterator[None]:
    """Treat a value that cannot be parsed inside the block as damage.

    Raises:
        Damage: ``what`` holds such a value.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damage(f"{what} cannot be read: {error}") from error


class Reader:
    """Reads records in one transaction. Protocols and origins, which many share, are read once."""

    def __init__(self, db: sa.Connection) -> None:
        self._db = db
        with legible("a protocol"):
            metrics = cache(_metrics)
            self.protocols = {
                row.id: Protocol(row.id, row.identity, row.task, metrics(row.metrics))
                for row in db.execute(sa.select(protocols))
            }
        self._origins: dict[str, str] = {row.id: row.content for row in db.execute(sa.select(origins))}
        self._provenances: dict[str, Provenance] = {}

    def runs(self, only: Iterable[str] | None = None, code: str | None = None) -> list[RunRecord]:
        """All runs, or those of the ids ``only``, oldest first, with the current result or that under ``code``."""
        of = runs.c.code if code is None else code
        joined = runs.outerjoin(results, sa.and_(results.c.run == runs.c.key, results.c.code == of))
        query: sa.Select[Any] = sa.select(
            runs.c.protocol_id,
            *(runs.c[name] for name in (*_RUN, *_STATE)),
            results.c.provenance,
            results.c.chosen,
            *(results.c[name] for name in _RESULT),
        ).select_from(joined)
        if only is None:
            return self._records(self._db.execute(query.order_by(runs.c.key)).all())
        rows = [row for some in batches(only) for row in self._db.execute(query.where(runs.c.id.in_(some)))]
        return sorted(self._records(rows), key=lambda run: run.key)

    def results(self, key: int) -> list[Result]:
        """All results of a run, oldest first."""
        columns = (results.c.provenance, results.c.chosen, *(results.c[name] for name in _RESULT))
        query = sa.select(*columns).where(results.c.run == key).order_by(results.c.started, results.c.code)
        with legible("a result"):
            return [
                Result(code, self.provenance(origin), *_ordered(json.loads(chosen), rest))
                for origin, chosen, code, *rest in self._db.execute(query)
            ]

    def provenance(self, ids: str) -> Provenance:
        """Look up the origins that a result's ``provenance`` column lists.

        Raises:
            Damage: an origin is missing.
        """
        if ids not in self._provenances:
            with legible("where a result came from"):
                self._provenances[ids] = Provenance.of(self._origins[key] for key in json.loads(ids))
        return self._provenances[ids]

    def _records(self, rows: Sequence[sa.Row[Any]]) -> list[RunRecord]:
        chosen_at = 1 + len(_RUN) + len(_STATE) + 1
        with legible("a run"):
            # One JSON call for all: one per run is slow for very many runs.
            texts = [row[chosen_at] or "{}" for row in rows]
            return list(map(self._record, rows, json.loads(f"[{','.join(texts)}]")))

    def _record(self, row: Sequence[Any], chosen: Mapping[str, Any]) -> RunRecord:
        protocol, run_id, paper, name, student, teacher, sha256, data, images, seed, precision, *more = row
        epochs, status, reason, created, claimed_by, attempt, kept, key, origin, _, code, *rest = more
        result = None
        if code is not None:
            result = Result(code, self.provenance(origin), *_ordered(chosen, rest))
        return RunRecord(
            run_id, self.protocols[protocol], paper, name, student, teacher, sha256, data, images, seed, precision,
            epochs, status, reason, created, claimed_by, attempt, kept, result, key,
        )  # fmt: skip


def _ordered(chosen: Mapping[str, Any], rest: Sequence[Any]) -> tuple[Any, ...]:
    started, finished, *figures = rest
    return (started, finished, chosen, *figures)


def _metrics(text: str) -> tuple[Metric, ...]:
    return tuple(Metric(**metric) for metric in json.loads(text))


def teacher_records(db: sa.Connection) -> list[TeacherRecord]:
    """Every measured teacher."""
    with legible("a teacher's accuracy"):
        return [
            TeacherRecord(row.sha256, row.data, row.network, json.loads(row.metrics), row.images, row.claimed)
            for row in db.execute(sa.select(teachers))
        ]


def teacher_row(record: TeacherRecord) -> dict[str, Any]:
    """The columns of a measured teacher."""
    about = {"sha256": record.sha256, "data": record.data, "network": record.network}
    return about | {"metrics": json.dumps(dict(record.metrics)), "images": record.images, "claimed": record.claimed}


def run_row(run: RunRecord) -> dict[str, Any]:
    """The columns of a run, except its key, its current result and its claim."""
    plain = {name: getattr(run, name) for name in (*_RUN, "epochs", "status", "reason", "created", "kept", "attempt")}
    return plain | {"protocol_id": run.protocol.id}


def result_row(key: int, result: Result, origin_ids: Sequence[str]) -> dict[str, Any]:
    """The columns of a result of the run ``key``."""
    plain = {name: getattr(result, name) for name in _RESULT}
    return plain | {"run": key, "provenance": json.dumps(origin_ids), "chosen": json.dumps(result.chosen)}


def insert_new(db: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows whose primary key is new; leave existing rows unchanged."""
    if not rows:
        return
    insert: Any = sqlite.insert
    if db.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # takes a quarter of the store's import time

        insert = postgresql.insert
    db.execute(insert(table).on_conflict_do_nothing(), list(rows))


def batches(ids: Iterable[str], size: int = AT_ONCE) -> Iterator[list[str]]:
    """Split ``ids``, without duplicates, into lists short enough for one query."""
    left = iter(dict.fromkeys(ids))
    while some := list(islice(left, size)):
        yield some


def now() -> str:
    """The current time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
