"""What readers of a store see, and what is planned in it."""

import json
import threading
from contextlib import closing
from typing import Any

import pytest

from kdtable.store import Store, Worker
from kdtable.store import results as results_module
from tests.store.samples import MEANING, ORIGIN, OTHER_MEANING, add, columns, fail, record, row


def test_planning_adds_only_what_is_new(store: Store, worker: Worker) -> None:
    store.plan([row("r1"), row("r2")])
    worker.claim(["r1"], ORIGIN)
    before = store.all_runs()
    store.plan([row("r2"), row("r1")])
    assert store.all_runs() == before
    store.plan([row("r3")])
    assert [run["id"] for run in store.all_runs()] == ["r1", "r2", "r3"]
    assert store.statuses(["r1", "r2", "r3", "r4"]) == {"r1": "running", "r2": "planned", "r3": "planned"}


def test_planning_nothing(store: Store) -> None:
    store.plan([])
    assert store.all_runs() == []


def test_a_run_planned_twice_at_once_is_one(store: Store) -> None:
    store.plan([row("r1"), row("r1")])
    assert len(store.all_runs()) == 1


def test_the_order_of_planning_is_kept(store: Store) -> None:
    names = ["r9", "r1", "r5"]
    store.plan(row(name) for name in names)
    assert [run["id"] for run in store.all_runs()] == names
    assert [run["id"] for run in store.all_runs(["r1", "r9"])] == ["r9", "r1"]


def test_more_runs_than_one_query_takes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module.batches, "__defaults__", (7,))
    names = [f"r{number}" for number in range(50)]
    store.plan(row(name) for name in names)
    assert store.statuses(names) == dict.fromkeys(names, "planned")
    assert [run["id"] for run in store.all_runs(names)] == names


def test_processes_that_plan_the_same_runs_in_other_orders(store: Store, store_url: str | None) -> None:
    """As two commands for overlapping grids do when they are started together."""
    names = [f"r{number}" for number in range(400)]
    errors: list[BaseException] = []

    def plan(order: list[str]) -> None:
        try:
            with closing(Store(store.folder, store_url)) as own:
                for start in range(0, 400, 40):
                    own.plan(row(name) for name in order[start:] + order[:start])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=plan, args=(order,)) for order in (names, names[::-1], names[::2] + names[1::2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(run["id"] for run in store.all_runs()) == sorted(names)


def test_a_protocols_meaning_is_kept_once(store: Store) -> None:
    store.plan([row("r1"), row("r2", seed=2), row("r3", meaning=OTHER_MEANING)])
    first, second, third = store.all_runs()
    assert first["meaning"] is second["meaning"]
    assert json.loads(first["meaning"]) == json.loads(MEANING)
    assert json.loads(third["meaning"]) == json.loads(OTHER_MEANING)


def test_failed_and_inapplicable_runs_are_planned_again(store: Store, worker: Worker) -> None:
    store.plan([row("r1"), row("r2", status="n/a", reason="too small"), row("r3"), row("r4", status="n/a")])
    worker.claim(["r1", "r3"], ORIGIN)
    fail(worker, "r1", "broken")
    store.reopen(["r1", "r2", "r3"])
    assert store.statuses(["r1", "r2", "r3", "r4"]) == {"r1": "planned", "r2": "planned", "r3": "running", "r4": "n/a"}
    assert (columns(store, "r2")["reason"], columns(store)["finished"]) == (None, None)


def test_epochs_come_in_order_of_training(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    early = [record(2, stage="zeta"), record(1, stage="zeta"), record(1, stage="init")]
    add(worker, "r1", record(2), record(10), record(1), *early)
    found = [(r["stage"], r["epoch"]) for r in store.epochs_of("r1")]
    assert found == [("init", 1), ("zeta", 1), ("zeta", 2), ("main", 1), ("main", 2), ("main", 10)]


def test_a_teachers_accuracy_is_replaced(store: Store) -> None:
    accuracy: dict[str, Any] = {
        "sha256": "a" * 64,
        "data": "digits",
        "network": "resnet14",
        "top1": 0.7,
        "top5": 0.9,
        "images": 449,
        "claimed_top1": None,
    }
    store.record_teacher(accuracy)
    store.record_teacher(accuracy | {"data": "cifar10", "top1": 0.2})
    store.record_teacher(accuracy | {"top1": 0.8})
    found = {row["data"]: row["top1"] for row in store.teacher_accuracies()}
    assert found == {"digits": 0.8, "cifar10": 0.2}


def test_opening_again_keeps_everything(store: Store, store_url: str | None) -> None:
    store.plan([row()])
    with closing(Store(store.folder, store_url, create=False)) as again:
        assert again.all_runs() == store.all_runs()


def test_a_run_has_a_folder_of_its_own(store: Store) -> None:
    assert store.run_folder("r1") != store.run_folder("r2")
    assert store.folder in store.run_folder("r1").parents
