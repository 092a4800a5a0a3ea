"""What tables show of runs, read by column: making a record of each of very many runs is slow."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import sqlalchemy as sa

from kdtable.garbage import uncollected
from kdtable.recipes.metrics import Metric
from kdtable.store.integrity import Damage
from kdtable.store.records import Provenance, RunRecord
from kdtable.store.results import Store
from kdtable.store.rows import Reader, batches
from kdtable.store.schema import results, runs


@dataclass(frozen=True, slots=True)
class ShownRuns:
    """Runs by column, oldest first: position i of every column belongs to one run.

    Attributes:
        rule: epoch shown, of :data:`kdtable.recipes.metrics.EPOCHS`.
        firsts: protocol id and row to the first run of both.
        values: stored metric to its values in the epoch shown; ``None`` where it was not measured.
        id, protocol, row, seed, status, reason, teacher_sha256, test_images: as in :class:`RunRecord`.
        provenance: where the current result came from; ``None`` for a run that was never claimed.
        epoch: number of the epoch shown; ``None`` without one.
        instead: whether that is the last epoch, since the run has none by the rule.
        best: the main metric in its best epoch, as stored; ``None`` without one.
    """

    rule: str
    firsts: Mapping[tuple[str, str], RunRecord] = field(default_factory=dict)
    values: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    id: Sequence[str] = ()
    protocol: Sequence[str] = ()
    row: Sequence[str] = ()
    seed: Sequence[int] = ()
    status: Sequence[str] = ()
    reason: Sequence[str | None] = ()
    teacher_sha256: Sequence[str | None] = ()
    test_images: Sequence[int | None] = ()
    provenance: Sequence[Provenance | None] = ()
    epoch: Sequence[int | None] = ()
    instead: Sequence[bool] = ()
    best: Sequence[float | None] = ()

    @classmethod
    def of(cls, records: Iterable[RunRecord]) -> "ShownRuns":
        """The columns of records, without the numbers of an epoch."""
        runs = list(records)
        names = ("id", "row", "seed", "status", "reason", "teacher_sha256", "test_images", "provenance")
        columns: dict[str, Any] = {name: [getattr(run, name) for run in runs] for name in names}
        firsts = {(run.protocol.id, run.row): run for run in reversed(runs)}
        best = [(run.metrics_of("best") or {}).get(run.protocol.main.stored) for run in runs]
        return cls("last", firsts, protocol=[run.protocol.id for run in runs], best=best, **columns)


_COLUMNS: Final = [column.name for column in fields(ShownRuns)][3:]


def shown_runs(
    store: Store, rule: str = "last", names: Iterable[str] = (), only: Iterable[str] | None = None
) -> ShownRuns:
    """Read what tables show of all runs.

        shown_runs(store, "best").values["top1"]

    Args:
        store: the store.
        rule: epoch to show.
        names: stored metrics to read; by default the main metric of each protocol.
        only: ids of the runs to read.

    Raises:
        Damaged: the database is damaged.
    """
    with store.database.read() as db, uncollected():
        reader = Reader(db)
        mains = list(dict.fromkeys(protocol.main.stored for protocol in reader.protocols.values()))
        wanted = list(dict.fromkeys(names)) or mains
        query = _query(db, rule, wanted, mains)
        rows = _rows(db, query, only)
        if not rows:
            return ShownRuns(rule, values=dict.fromkeys(wanted, ()))
        columns: dict[str, Any] = dict(zip([*_COLUMNS, *wanted], zip(*rows, strict=True), strict=True))
        made = {ids: None if ids is None else reader.provenance(ids) for ids in set(columns["provenance"])}
        columns["provenance"] = [made[ids] for ids in columns["provenance"]]
        values = {name: columns.pop(name) for name in wanted}
        return ShownRuns(rule, _firsts(reader, columns), values, **columns)


def metrics_of_tasks(store: Store) -> dict[str, Metric]:
    """The metrics of the stored runs' tasks, by name."""
    with store.database.read() as db:
        return {one.name: one for protocol in Reader(db).protocols.values() for one in protocol.metrics}


def _query(db: sa.Connection, rule: str, names: Sequence[str], mains: Sequence[str]) -> sa.Select[Any]:
    text: Any = results.c.chosen
    chosen: Any = sa.type_coerce(text, sa.JSON) if db.dialect.name == "sqlite" else sa.cast(text, sa.JSON)
    lacking = chosen[rule, 0].as_integer().is_(None)
    which = [rule] if rule == "last" else [rule, "last"]
    epoch = sa.func.coalesce(*(chosen[one, 0].as_integer() for one in which), sa.null())
    best = sa.func.coalesce(*(chosen["best", 1, main].as_float() for main in mains), sa.null(), sa.null())
    joined = runs.outerjoin(results, sa.and_(results.c.run == runs.c.key, results.c.code == runs.c.code))
    return sa.select(
        runs.c.id, runs.c.protocol_id, runs.c.row, runs.c.seed, runs.c.status, runs.c.reason, runs.c.teacher_sha256,
        runs.c.test_images, results.c.provenance, epoch, sa.false() if rule == "last" else lacking, best,
        *(
            sa.case((lacking, chosen["last", 1, name].as_float()), else_=chosen[rule, 1, name].as_float())
            if rule != "last"
            else chosen["last", 1, name].as_float()
            for name in names
        ),
    ).select_from(joined).order_by(runs.c.key)  # fmt: skip


def _rows(db: sa.Connection, query: sa.Select[Any], only: Iterable[str] | None) -> Sequence[sa.Row[Any]]:
    try:
        if only is None:
            return db.execute(query).all()
        return [row for some in batches(only) for row in db.execute(query.where(runs.c.id.in_(some)))]
    except sa.exc.DBAPIError as error:
        if "JSON" in str(error.orig).upper():
            raise Damage(f"a run cannot be read: {error.orig}") from error
        raise


def _firsts(reader: Reader, columns: Mapping[str, Sequence[Any]]) -> dict[tuple[str, str], RunRecord]:
    ids: dict[tuple[str, str], str] = {}
    for key, run_id in zip(zip(columns["protocol"], columns["row"], strict=True), columns["id"], strict=True):
        ids.setdefault(key, run_id)
    records = {run.id: run for run in reader.runs(ids.values())}
    return {key: records[run_id] for key, run_id in ids.items()}
