"""A summary of the store, quick for any number of runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from kdtable.store.claims import pulse_of
from kdtable.store.records import Protocol, RunRecord
from kdtable.store.results import Store
from kdtable.store.retraining import older_of
from kdtable.store.rows import Reader, legible
from kdtable.store.schema import results, runs, workers


@dataclass(frozen=True, slots=True)
class Trainer:
    """The process that trains a run: its machine, its pid, and its last heartbeat (UTC)."""

    host: str
    pid: int
    seen: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that is not done, its state, and the process that trains it."""

    run: RunRecord
    state: str
    trainer: Trainer | None


@dataclass(frozen=True, slots=True)
class Made:
    """Finished runs of one protocol and row, the hashes of the code that made them, and their number."""

    protocol: Protocol
    row: str
    sources: tuple[str, ...]
    runs: int


@dataclass(frozen=True, slots=True)
class Overview:
    """Counts of runs, and some of those that are not done.

    Attributes:
        counts: state to number of runs. The state is the status, or "interrupted" for a running run whose process died.
        shown: runs that are not done: failed, then running, interrupted, planned, n/a.
        hidden: number of further runs that are not done.
        sources: source hashes of the code that trained the runs.
        made: which code made the finished runs.
        older: number of results that are kept beside newer ones.
    """

    counts: Mapping[str, int]
    shown: list[Unfinished]
    hidden: int
    sources: frozenset[str]
    made: Sequence[Made] = ()
    older: int = 0


def overview(store: Store, limit: int) -> Overview:
    """Count all runs, and list up to ``limit`` that are not done."""
    with store.database.read() as db:
        training = {row.id: row for row in db.execute(sa.select(workers))}
        trainers = {key: Trainer(row.host, row.pid, row.seen) for key, row in training.items()}
        ended = [key for key, row in training.items() if pulse_of(row).process.gone]
        abandoned = sa.or_(runs.c.claimed_by.is_(None), runs.c.claimed_by.in_(ended))
        interrupted = sa.and_(runs.c.status == "running", abandoned)
        state = sa.case((interrupted, "interrupted"), else_=runs.c.status)
        counted = sa.select(state.label("state"), sa.func.count().label("runs")).group_by(state)
        counts: Counter[str] = Counter({row.state: row.runs for row in db.execute(counted)})
        order = {"failed": 0, "running": 1, "interrupted": 2, "planned": 3, "n/a": 4}
        query = sa.select(runs.c.id, state.label("state")).where(runs.c.status != "done")
        listed = db.execute(query.order_by(sa.case(order, value=state), runs.c.key).limit(limit)).all()
        reader = Reader(db)
        found = {run.id: run for run in reader.runs(row.id for row in listed)}
        with legible("an index of runs"):
            shown = [_unfinished(found[row.id], row.state, trainers) for row in listed]
        made = db.execute(sa.select(results.c.provenance).distinct()).scalars()
        sources = frozenset(source for ids in made for source in reader.provenance(ids).sources)
        finished, older = _made(db, reader), len(older_of(db))
    return Overview(counts, shown, counts.total() - counts["done"] - len(shown), sources, finished, older)


def _made(db: sa.Connection, reader: Reader) -> list[Made]:
    joined = runs.join(results, sa.and_(results.c.run == runs.c.key, results.c.code == runs.c.code))
    alike = (runs.c.protocol_id, runs.c.row, results.c.provenance)
    query = sa.select(*alike, sa.func.count().label("runs")).select_from(joined).where(runs.c.status == "done")
    return [
        Made(reader.protocols[row.protocol_id], row.row, reader.provenance(row.provenance).sources, row.runs)
        for row in db.execute(query.group_by(*alike).order_by(sa.func.min(runs.c.key)))
    ]


def _unfinished(run: RunRecord, state: str, trainers: Mapping[str, Trainer]) -> Unfinished:
    return Unfinished(run, state, trainers.get(run.claimed_by or ""))
