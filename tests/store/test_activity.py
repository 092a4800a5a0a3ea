"""Who trains what, what failed, and when it will end."""

from pathlib import Path
from typing import Any

import pytest

from kdtable.cli.watch import activity_text
from kdtable.store import Store, Worker
from kdtable.store.activity import activity
from tests.store.samples import ME, ORIGIN, fail, record, row, stranger


def _begin(store: Store, worker: Worker) -> None:
    """r1 and r2 train here, r1 has an epoch of 2 s; r3 and r4 failed; far trains r5; r6 waits; r7's process died."""
    dead: dict[str, Any] = {"machine": ME.machine, "pid": ME.pid, "started": "1"}
    store.plan(row(f"r{number}", seed=number) for number in range(1, 8))
    worker.claim(["r1", "r2", "r3", "r4"], ORIGIN)
    fail(worker, "r3", "broken")
    fail(worker, "r4", "broken")
    stranger(store, "r5", seen="2026-01-02T03:04:05+00:00")
    stranger(store, "r7", **dead)
    with worker.holding("r1") as held:
        held.record([record(1)])


def test_the_activity_of_a_store(store: Store, worker: Worker) -> None:
    _begin(store, worker)
    found = activity(store)
    training = {trainer.host: [run.id for run in runs] for trainer, runs in found.training.items()}
    assert training == {ME.host: ["r1", "r2"], "far": ["r5"]}
    assert found.failures == {"broken": 2}
    assert found.epochs_waiting == 6, "three of the planned run, three of the interrupted one"
    # Left are 6 + 2 + 3 + 3 epochs of runs, and one epoch of one run takes two seconds.
    assert found.seconds_left() == pytest.approx(14 * 2)


def test_a_store_in_which_nothing_happens(store: Store) -> None:
    found = activity(store)
    assert (found.training, found.failures, found.epochs_waiting, found.seconds_left()) == ({}, {}, 0, None)


def test_what_is_drawn_fits_eighty_columns(store: Store, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.database.is_server:
        pytest.skip("the same drawing")
    monkeypatch.setenv("COLUMNS", "80")
    _begin(store, worker)
    text = activity_text(Path(store.folder), None)
    assert max(map(len, text.splitlines())) <= 80
    first, *_ = text.splitlines()
    assert first.startswith("0 done, 3 running, 1 interrupted, 2 failed, 1 missing; about 28 s left, until ")
    assert f"{ME.host}:{ME.pid}" in text
    assert "kd on resnet14:resnet8, seed 1, 2" in " ".join(text.replace("│", " ").split())
    assert "0-1/3" in text
    assert "03:04:05" in text
    assert "2 failed: broken" in text
