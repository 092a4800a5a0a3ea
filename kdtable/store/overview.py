"""The store at a glance, whatever its size."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from kdtable.store.claims import pulse_of
from kdtable.store.results import Histories, Store
from kdtable.store.schema import runs, workers


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
        gone = [row.id for row in db.execute(sa.select(workers)) if pulse_of(row).process.gone]
        abandoned = sa.or_(runs.c.claimed_by.is_(None), runs.c.claimed_by.in_(gone))
        interrupted = sa.and_(runs.c.status == "running", abandoned)
        state = sa.case((interrupted, "interrupted"), else_=runs.c.status)
        counted = sa.select(state.label("state"), sa.func.count().label("runs")).group_by(state)
        counts: Counter[str] = Counter({row.state: row.runs for row in db.execute(counted)})
        order = {"failed": 0, "running": 1, "interrupted": 2, "planned": 3, "n/a": 4}
        query = (
            sa.select(runs, state.label("state"), workers.c.host, workers.c.pid, workers.c.seen)
            .outerjoin(workers, workers.c.id == runs.c.claimed_by)
            .where(runs.c.status != "done")
            .order_by(sa.case(order, value=state), runs.c.key)
            .limit(limit)
        )
        shown = [dict(row) for row in db.execute(query).mappings()]
        histories = Histories(db)
        made = db.execute(sa.select(runs.c.provenance).distinct()).scalars().all()
    sources = {origin["source"] for ids in made for origin in json.loads(histories.text(ids) or "[]")}
    return Overview(counts, shown, counts.total() - counts["done"] - len(shown), frozenset(sources))
