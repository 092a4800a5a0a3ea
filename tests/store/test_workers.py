"""Workers beat while they live, and are forgotten when they are gone."""

from typing import Any

import pytest
import sqlalchemy as sa

from kdtable.store import Store, Worker
from kdtable.store.schema import workers
from tests.store.samples import (
    ME,
    ORIGIN,
    columns,
    row,
    stranger,
    workers_of,
)


def test_a_worker_beats(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTABLE_LEASE", "0.2")
    with Worker(store) as worker:
        beats: set[int] = set()
        while len(beats) < 3:
            with store.database.read() as db:
                beats.add(db.execute(sa.select(workers.c.beat).where(workers.c.id == worker.id)).scalar_one())


def test_nothing_is_left_of_a_worker_that_ended(store: Store) -> None:
    store.plan([row()])

    def interrupted() -> None:
        with Worker(store) as worker:
            worker.claim(["r1"], ORIGIN)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert workers_of(store) == []
    assert columns(store).status == "planned"


def test_a_dead_worker_is_forgotten_when_its_claims_are_gone(store: Store) -> None:
    store.plan([row()])
    dead: dict[str, Any] = {"machine": ME.machine, "pid": ME.pid, "started": "1"}
    idle, holding, far = stranger(store, **dead), stranger(store, "r1", **dead), stranger(store)
    with Worker(store) as worker:
        assert sorted(workers_of(store)) == sorted([worker.id, holding, far])
        assert idle not in workers_of(store)
        worker.claim(["r1"], ORIGIN)
    with Worker(store):
        assert holding not in workers_of(store)
        assert far in workers_of(store), "of another machine nothing is known"
