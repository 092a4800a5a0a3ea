"""The store at a glance, whatever its size."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from kdtable.store.claims import pulse_of
from kdtable.store.results import Histories, Store
from kdtable.store.schema import runs, workers
from kdtable.store.seals import Damage, checked


@dataclass(frozen=True, slots=True)
class Overview:
    """What stands where.

    Attributes:
        counts: runs by state, which is their status, but "interrupted" where a running one's process has died.
        shown: some runs that are not done: failed ones first, then those in training, interrupted and planned. Beside
            their columns they have a ``state``, and ``host``, ``pid`` and ``seen`` of the process that trains them.
        hidden: how many more there are.
        sources: hashes of the code that made the runs.
    """

    counts: Mapping[str, int]
    shown: list[dict[str, Any]]
    hidden: int
    sources: frozenset[str]


def overview(store: Store, limit: int) -> Overview:
    """Count all runs, and give up to ``limit`` of those that are not done."""
    with store.database.read() as db:
        training = {row.id: row for row in checked(workers, db.execute(sa.select(workers)))}
        ended = [key for key, row in training.items() if pulse_of(row).process.gone]
        abandoned = sa.or_(runs.c.claimed_by.is_(None), runs.c.claimed_by.in_(ended))
        interrupted = sa.and_(runs.c.status == "running", abandoned)
        state = sa.case((interrupted, "interrupted"), else_=runs.c.status)
        counted = sa.select(state.label("state"), sa.func.count().label("runs")).group_by(state)
        counts: Counter[str] = Counter({row.state: row.runs for row in db.execute(counted)})
        order = {"failed": 0, "running": 1, "interrupted": 2, "planned": 3, "n/a": 4}
        query = sa.select(runs).where(runs.c.status != "done")
        listed = db.execute(query.order_by(sa.case(order, value=state), runs.c.key).limit(limit))
        shown = [_shown(row, training, ended) for row in checked(runs, listed)]
        histories = Histories(db)
        made = db.execute(sa.select(runs.c.provenance).distinct()).scalars().all()
        texts = [histories.text(ids) or "[]" for ids in made]
    sources = {origin["source"] for text in texts for origin in json.loads(text)}
    return Overview(counts, shown, counts.total() - counts["done"] - len(shown), frozenset(sources))


def _shown(row: sa.Row[Any], training: Mapping[str, sa.Row[Any]], ended: Collection[str]) -> dict[str, Any]:
    """A run's columns, its state, and who trains it."""
    abandoned = row.status == "running" and (row.claimed_by is None or row.claimed_by in ended)
    worker = training.get(row.claimed_by)
    if row.claimed_by is not None and worker is None:
        raise Damage(f"the process that trains run {row.id} is lost")
    about = {name: worker._mapping[name] if worker else None for name in ("host", "pid", "seen")}
    return {**row._mapping, **about, "state": "interrupted" if abandoned else row.status}
