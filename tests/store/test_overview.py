"""A store at a glance."""

from typing import Any

from kdtable.store import Store, Worker
from kdtable.store.overview import Trainer, overview
from tests.store.samples import ME, ORIGIN, fail, rewrite, row, stranger, train


def states(store: Store, limit: int = 50) -> list[tuple[str, str]]:
    return [(found.run.id, found.state) for found in overview(store, limit).shown]


def test_an_empty_store(store: Store) -> None:
    found = overview(store, 10)
    assert (dict(found.counts), found.shown, found.hidden, found.sources) == ({}, [], 0, frozenset())


def test_every_state_in_order_of_interest(store: Store, worker: Worker) -> None:
    dead: dict[str, Any] = {"machine": ME.machine, "pid": ME.pid, "started": "1"}
    store.plan([row("na", status="n/a", reason="too small"), *(row(f"r{number}") for number in range(1, 8))])
    train(store, "done", 0.1)
    stranger(store, "r3", **dead)
    far = stranger(store, "r4", seen="yesterday")
    worker.claim(["r1", "r5"], ORIGIN | {"source": "s2"})
    fail(worker, "r5", "broken")
    found = overview(store, 50)
    assert found.counts == {"done": 1, "failed": 1, "running": 2, "interrupted": 1, "planned": 3, "n/a": 1}
    expected = ["r5 failed", "r1 running", "r4 running", "r3 interrupted", "r2 planned", "r6 planned", "r7 planned"]
    assert [" ".join(pair) for pair in states(store)] == [*expected, "na n/a"]
    assert found.sources == {"s1", "s2"}
    by_id = {shown.run.id: shown for shown in found.shown}
    trainers = {name: by_id[name].trainer for name in ("r1", "r2", "r4")}
    assert trainers["r1"]
    assert (trainers["r1"].host, trainers["r1"].pid) == (ME.host, ME.pid)
    assert trainers["r4"] == Trainer("far", 7, "yesterday"), far
    assert (trainers["r2"], by_id["r5"].run.reason) == (None, "broken")


def test_as_many_as_asked_for(store: Store, worker: Worker) -> None:
    store.plan(row(f"r{number}") for number in range(30))
    worker.claim(["r29"], ORIGIN)
    found = overview(store, 5)
    assert states(store, 5) == [("r29", "running"), *((f"r{number}", "planned") for number in range(4))]
    assert found.hidden == 25


def test_a_run_in_training_that_nobody_holds_was_interrupted(store: Store) -> None:
    store.plan([row()])
    stranger(store, "r1")
    rewrite(store, "UPDATE runs SET claimed_by = NULL")
    assert overview(store, 5).counts == {"interrupted": 1}
