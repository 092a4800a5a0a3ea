"""What readers of a store see, and what is planned in it."""

import threading
from contextlib import closing
from dataclasses import replace

import pytest

from kdtable.recipes.metrics import CLASSIFICATION, Metric
from kdtable.store import Store, Worker
from kdtable.store import rows as rows_module
from tests.store.samples import ACCURACY, IDENTITY, ORIGIN, OTHER_IDENTITY, add, columns, fail, record, row


def test_planning_adds_only_what_is_new(store: Store, worker: Worker) -> None:
    store.plan([row("r1"), row("r2")])
    worker.claim(["r1"], ORIGIN)
    before = store.runs()
    store.plan([row("r2"), row("r1")])
    assert store.runs() == before
    store.plan([row("r3")])
    assert [run.id for run in store.runs()] == ["r1", "r2", "r3"]
    assert store.statuses(["r1", "r2", "r3", "r4"]) == {"r1": "running", "r2": "planned", "r3": "planned"}


def test_planning_nothing(store: Store) -> None:
    store.plan([])
    assert store.runs() == []


def test_a_run_planned_twice_at_once_is_one(store: Store) -> None:
    store.plan([row("r1"), row("r1")])
    assert len(store.runs()) == 1


def test_the_order_of_planning_is_kept(store: Store) -> None:
    names = ["r9", "r1", "r5"]
    store.plan(row(name) for name in names)
    assert [run.id for run in store.runs()] == names
    assert [run.id for run in store.runs(["r1", "r9"])] == ["r9", "r1"]


def test_more_runs_than_one_query_takes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module.batches, "__defaults__", (7,))
    names = [f"r{number}" for number in range(50)]
    store.plan(row(name) for name in names)
    assert store.statuses(names) == dict.fromkeys(names, "planned")
    assert [run.id for run in store.runs(names)] == names


def test_the_newest_epoch_is_read_without_the_others(store: Store, worker: Worker) -> None:
    store.plan([row("r1"), row("r2"), row("r3")])
    worker.claim(["r1", "r2"], ORIGIN)
    misleading = {"stage": 1.0, '{"stage": "': 2.0}  # as a plug-in may name its terms
    history = (record(1, stage='{"stage": "', terms=misleading), record(1), record(2, terms=misleading, test_loss=0.1))
    for run_id, epochs in {"r1": history, "r2": ()}.items():
        with worker.holding(run_id) as held:
            held.record(epochs)
    assert store.newest(["r1", "r2", "r3"]) == {"r1": (3, history[-1])}
    assert store.history("r1") == history
    assert [store.epochs(["r1", "r2"])[run_id] for run_id in ("r1", "r2", "r3")] == [3, 0, 0]


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
    assert sorted(run.id for run in store.runs()) == sorted(names)


def test_a_protocol_is_kept_once(store: Store) -> None:
    store.plan([row("r1"), row("r2", seed=2), row("r3", OTHER_IDENTITY)])
    first, second, third = store.runs()
    assert first.protocol is second.protocol
    assert (first.protocol.identity, third.protocol.identity) == (IDENTITY, OTHER_IDENTITY)
    assert (first.protocol.task, first.protocol.metrics) == ("classification", CLASSIFICATION)


def test_metrics_of_another_task_are_kept_with_its_runs(store: Store, worker: Worker) -> None:
    error = Metric("error", "mean error", "px", higher_is_better=False, stored="error")
    planned = row()
    store.plan([replace(planned, protocol=replace(planned.protocol, task="regression", metrics=(error,)))])
    worker.claim(["r1"], ORIGIN)
    add(
        worker,
        "r1",
        record(1, metrics={"error": 2.0}),
        record(2, metrics={"error": 1.0}),
        record(3, metrics={"error": 3.0}),
    )
    found = columns(store)
    assert (found.protocol.task, found.protocol.metrics) == ("regression", (error,))
    assert found.metrics_of("best") == {"error": 1.0}


def test_failed_and_inapplicable_runs_are_planned_again(store: Store, worker: Worker) -> None:
    store.plan([row("r1"), row("r2", status="n/a", reason="too small"), row("r3"), row("r4", status="n/a")])
    worker.claim(["r1", "r3"], ORIGIN)
    fail(worker, "r1", "broken")
    store.reopen(["r1", "r2", "r3"])
    assert store.statuses(["r1", "r2", "r3", "r4"]) == {"r1": "planned", "r2": "planned", "r3": "running", "r4": "n/a"}
    assert [columns(store, run_id).reason for run_id in ("r1", "r2")] == [None, None]


def test_a_history_is_given_back_whole(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    history = (record(1, stage="init", metrics={}, terms={"ab": 1 / 3}), record(1, 0.1, waited=0.25, test_loss=1e-300))
    add(worker, "r1", *history)
    assert store.history("r1") == history
    assert store.history("r2") == ()


def test_a_teachers_accuracy_is_replaced(store: Store) -> None:
    store.record_teacher(replace(ACCURACY, claimed=70.5))
    store.record_teacher(replace(ACCURACY, data="cifar10"))
    last = replace(ACCURACY, metrics={"top1": 0.9, "top5": 1.0})
    store.record_teacher(last)
    assert sorted(store.teacher_accuracies(), key=lambda known: known.data) == [replace(ACCURACY, data="cifar10"), last]


def test_opening_again_keeps_everything(store: Store, store_url: str | None) -> None:
    store.plan([row()])
    with closing(Store(store.folder, store_url, create=False)) as again:
        assert again.runs() == store.runs()


def test_a_run_has_a_folder_of_its_own(store: Store) -> None:
    assert store.run_folder("r1") != store.run_folder("r2")
    assert store.folder in store.run_folder("r1").parents
