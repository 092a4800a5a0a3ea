"""What tables show of runs, read by column: making a record of each of very many runs is slow."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import sqlalchemy as sa

from kdtable.garbage import uncollected
from kdtable.recipes.metrics import PROBED, PROBES, VALIDATED, Metric, shown_with
from kdtable.store.integrity import Damage
from kdtable.store.records import UNCLAIMED, Provenance, RunRecord
from kdtable.store.results import Store
from kdtable.store.rows import Reader, batches
from kdtable.store.schema import results, runs

#: What decides a run's warnings beside its own numbers: number of its group, checksum of its teacher, number of test
#: images.
Kind = tuple[int, str | None, int | None]
_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class ShownRuns:
    """Runs by column, oldest first: position i of every column belongs to one run.

    Attributes:
        rule: epoch shown, of :data:`kdtable.recipes.metrics.EPOCHS`; of runs with held-out images ``validation``.
        firsts: the first run of each group: of each protocol and row.
        kinds: distinct kinds of runs.
        provenances: distinct provenances of current results; an empty one of runs that were never claimed.
        values: stored metric to its values in the epoch shown; ``None`` where it was not measured.
        kind: number of the kind.
        made: number of the provenance.
        id, seed, status, reason: as in :class:`RunRecord`.
        epoch: number of the epoch shown; ``None`` without one.
        instead: whether that is the last epoch, since the run has none by the rule.
        best: the main metric in its best epoch, as stored; ``None`` without one.
    """

    rule: str
    firsts: Sequence[RunRecord] = ()
    kinds: Sequence[Kind] = ()
    provenances: Sequence[Provenance] = ()
    values: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    kind: Sequence[int] = ()
    made: Sequence[int] = ()
    id: Sequence[str] = ()
    seed: Sequence[int] = ()
    status: Sequence[str] = ()
    reason: Sequence[str | None] = ()
    epoch: Sequence[int | None] = ()
    instead: Sequence[bool] = ()
    best: Sequence[float | None] = ()

    @classmethod
    def of(cls, records: Iterable[RunRecord]) -> "ShownRuns":
        """The columns of records, without the numbers of an epoch."""
        runs = list(records)
        firsts, kinds, kind = _kinds([(run.protocol.id, run.row, run.teacher_sha256, run.test_images) for run in runs])
        made, provenances = _numbered(run.provenance.origins for run in runs)
        return cls(
            "last",
            [runs[place] for place in firsts],
            kinds,
            [Provenance.of(origins) for origins in provenances],
            kind=kind,
            made=made,
            id=[run.id for run in runs],
            seed=[run.seed for run in runs],
            status=[run.status for run in runs],
            reason=[run.reason for run in runs],
            best=[
                (run.metrics_of("best") or run.metrics_of(VALIDATED) or {}).get(run.protocol.main.stored)
                for run in runs
            ],
        )


def shown_runs(
    store: Store, rule: str = "last", names: Iterable[str] = (), only: Iterable[str] | None = None
) -> ShownRuns:
    """Read what tables show of all runs.

        shown_runs(store, "best").values["top1"]

    Args:
        store: the store.
        rule: epoch to show.
        names: stored metrics to read; by default the usual ones of each protocol.
        only: ids of the runs to read.

    Raises:
        Damaged: the database is damaged.
    """
    with store.database.read() as db, uncollected():
        reader = Reader(db)
        usual = (name for main in _mains(reader) for name in shown_with(main))
        wanted = list(dict.fromkeys(names)) or list(dict.fromkeys(usual))
        numbers_of = _numbers_of_both if _validated(reader) else _numbers
        judged, numbers = _read(db, reader, numbers_of(db, rule, wanted), only)
        provenance, seed, epoch, instead, *values = numbers
        made, origins = _numbered(provenance)
        return replace(
            judged,
            rule=rule,
            provenances=[UNCLAIMED if ids is None else reader.provenance(ids) for ids in origins],
            values=dict(zip(wanted, values, strict=True)),
            made=made,
            seed=seed,
            epoch=epoch,
            instead=instead,
        )


def judged_runs(store: Store) -> ShownRuns:
    """Read what warnings are about, without the numbers of an epoch.

    Raises:
        Damaged: the database is damaged.
    """
    with store.database.read() as db, uncollected():
        return _read(db, Reader(db), (), None)[0]


def _read(
    db: sa.Connection, reader: Reader, more: Sequence[Any], only: Iterable[str] | None
) -> tuple[ShownRuns, list[tuple[Any, ...]]]:
    """What warnings are about, and the columns ``more``."""
    rules = ("best", VALIDATED) if _validated(reader) else ("best",)
    best = _first_of([_chosen(db)[rule, 1, main].as_float() for rule in rules for main in _mains(reader)])
    kind_of = (runs.c.protocol_id, runs.c.row, runs.c.teacher_sha256, runs.c.test_images)
    query = sa.select(*kind_of, runs.c.id, runs.c.status, runs.c.reason, best, *more)
    joined = runs.outerjoin(results, sa.and_(results.c.run == runs.c.key, results.c.code == runs.c.code))
    rows = _rows(db, query.select_from(joined).order_by(runs.c.key), only)
    columns = list(zip(*rows, strict=True)) or [()] * len(query.selected_columns)
    firsts, kinds, kind = _kinds(list(zip(*columns[:4], strict=True)))
    run_id, status, reason, reached, *others = columns[4:]
    records = {run.id: run for run in reader.runs(run_id[place] for place in firsts)}
    of_groups = [records[run_id[place]] for place in firsts]
    judged = ShownRuns("last", of_groups, kinds, kind=kind, id=run_id, status=status, reason=reason, best=reached)
    return judged, others


def _numbered(keys: Iterable[_K]) -> tuple[list[int], list[_K]]:
    """A number for each key, the same for equal ones, and the distinct keys."""
    numbers: dict[_K, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys], list(numbers)


def _kinds(runs: Sequence[tuple[str, str, str | None, int | None]]) -> tuple[list[int], list[Kind], list[int]]:
    """The place of each group's first run, the distinct kinds, and each run's number among them.

    Args:
        runs: for each, protocol, row, checksum of the teacher and number of test images.
    """
    kind, distinct = _numbered(runs)
    group, _ = _numbered(found[:2] for found in distinct)
    first_of = {number: place for place, number in reversed(list(enumerate(kind)))}
    firsts = {of: first_of[number] for number, of in reversed(list(enumerate(group)))}
    kinds = [(of, *found[2:]) for of, found in zip(group, distinct, strict=True)]
    return [firsts[of] for of in range(len(firsts))], kinds, kind


def metrics_of_tasks(store: Store) -> dict[str, Metric]:
    """The metrics of the stored runs' tasks, by name."""
    with store.database.read() as db:
        return {one.name: one for protocol in Reader(db).protocols.values() for one in protocol.metrics}


def _mains(reader: Reader) -> list[str]:
    """The stored main metrics of all protocols."""
    return list(dict.fromkeys(protocol.main.stored for protocol in reader.protocols.values()))


def _chosen(db: sa.Connection) -> Any:
    """The column of the epochs that tables show, as JSON."""
    text: Any = results.c.chosen
    return sa.type_coerce(text, sa.JSON) if db.dialect.name == "sqlite" else sa.cast(text, sa.JSON)


def _metric(chosen: Any, rule: str, name: str) -> Any:
    """The column of a stored metric in an epoch; a probe is of the student that was kept, of the last or chosen one."""
    kept = rule in ("last", VALIDATED)
    return chosen[PROBES if kept and name in PROBED else rule, 1, name].as_float()


def _numbers(db: sa.Connection, rule: str, names: Sequence[str]) -> list[Any]:
    """Columns of provenance, seed, number of the epoch shown, whether it is the last instead, and its metrics."""
    chosen = _chosen(db)
    lacking = chosen[rule, 0].as_integer().is_(None)
    epoch = _first_of([chosen[one, 0].as_integer() for one in dict.fromkeys((rule, "last"))])
    last, own = ([_metric(chosen, one, name) for name in names] for one in ("last", rule))
    if rule == "last":
        return [results.c.provenance, runs.c.seed, epoch, sa.literal_column("0"), *last]
    shown = [sa.case((lacking, of_last), else_=of_rule) for of_last, of_rule in zip(last, own, strict=True)]
    return [results.c.provenance, runs.c.seed, epoch, lacking, *shown]


def _numbers_of_both(db: sa.Connection, rule: str, names: Sequence[str]) -> list[Any]:
    """As `_numbers`, where runs with held-out images show the epoch that these choose."""
    provenance, seed, epoch, instead, *others = _numbers(db, rule, names)
    chosen = _chosen(db)
    number = chosen[VALIDATED, 0].as_integer()
    own = [_metric(chosen, VALIDATED, name) for name in names]
    shown = [sa.case((number.is_not(None), mine), else_=other) for mine, other in zip(own, others, strict=True)]
    return [provenance, seed, _first_of([number, epoch]), sa.and_(instead, number.is_(None)), *shown]


def _validated(reader: Reader) -> bool:
    return any(protocol.validated for protocol in reader.protocols.values())


def _first_of(columns: Sequence[Any]) -> Any:
    """The first of columns that is not null."""
    return sa.func.coalesce(*columns) if len(columns) > 1 else (columns or [sa.null()])[0]


def _rows(db: sa.Connection, query: sa.Select[Any], only: Iterable[str] | None) -> Sequence[sa.Row[Any]]:
    try:
        if only is None:
            return db.execute(query).all()
        return [row for some in batches(only) for row in db.execute(query.where(runs.c.id.in_(some)))]
    except sa.exc.DBAPIError as error:
        if "JSON" in str(error.orig).upper():
            raise Damage(f"a run cannot be read: {error.orig}") from error
        raise
