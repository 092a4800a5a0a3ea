"""Claims: each run is one process's, and only that one writes it."""

import math
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtable.recipes.metrics import CLASSIFICATION
from kdtable.store import ClaimLost, Store, Worker
from kdtable.store.records import choose
from tests.store.samples import (
    ME,
    ORIGIN,
    Clock,
    add,
    beat,
    columns,
    fail,
    finish,
    origins,
    record,
    rewrite,
    row,
    stranger,
    top1_of,
    top1s,
)

# --- the life of a run ------------------------------------------------------------------------------------------


def test_life_of_a_run(store: Store, worker: Worker) -> None:
    store.plan([row()])
    fresh = columns(store)
    assert (fresh.status, fresh.result, fresh.attempt) == ("planned", None, 0)
    assert fresh.created
    assert worker.claim(["r1"], ORIGIN) == ["r1"]
    begun = columns(store)
    assert (begun.status, begun.claimed_by, begun.attempt) == ("running", worker.id, 1)
    add(worker, "r1", record(1, 0.3))
    assert columns(store).status == "running"
    own = {"cpu_seconds": 0.75}
    history = (record(1, 0.3, waited=0.5, **own), record(2, 0.6, **own), record(3, 0.5, 0.8, **own))
    with worker.holding("r1") as held:
        held.finish(history, "last", 1234, 56)
    done, result = columns(store), columns(store).result
    assert result is not None
    assert (done.status, done.kept, done.claimed_by, done.last_epoch) == ("done", "last", None, 3)
    assert done.metrics_of("last") == {"top1": 0.5, "top5": 0.8, "train-top1": 0.4}
    assert list(result.chosen["best"]) == [2, {"top1": 0.6, "top5": 0.9, "train-top1": 0.4}]
    assert (result.code, result.wall_seconds, result.waited_seconds, result.parameters) == ("s1", 6.0, 0.5, 1234)
    assert (result.method_parameters, result.cpu_seconds) == (56, 2.25)
    assert (result.finished or "") >= result.started >= done.created
    assert store.history("r1") == history


def test_recording_twice_changes_nothing(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    history = [record(1), record(2)]
    add(worker, "r1", *history)
    before = (store.runs(), store.history("r1"))
    add(worker, "r1", *history)
    assert (store.runs(), store.history("r1")) == before


def test_a_gap_in_the_history_is_repaired(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    add(worker, "r1", record(2))
    finish(worker, "r1", record(1), record(2), record(3))
    assert [r.epoch for r in store.history("r1")] == [1, 2, 3]


def test_epochs_that_the_history_lost_are_forgotten(store: Store, worker: Worker) -> None:
    """As after a damaged checkpoint, when a run goes on from the one before."""
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    add(worker, "r1", record(1, 0.2), record(2, 0.9))
    add(worker, "r1", record(1, 0.2))
    assert [r.epoch for r in store.history("r1")] == [1]
    assert (columns(store).last_epoch, top1_of(columns(store), "best")) == (1, 0.2)


def test_recording_an_empty_history(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    add(worker, "r1")
    assert store.history("r1") == ()
    assert columns(store).metrics_of("last") is None


@given(tops=st.lists(st.sampled_from((0.1, 0.2, 0.3)), min_size=1, max_size=6))
def test_the_best_epoch_is_the_first_of_the_best(tops: list[float]) -> None:
    history = [record(i, top1) for i, top1 in enumerate(tops, start=1)]
    found = choose(history, CLASSIFICATION[0])
    assert found["best"][0] == tops.index(max(tops)) + 1
    assert found["last"][1]["top1"] == tops[-1]
    for direction in (
        replace(CLASSIFICATION[0], higher_is_better=False),  # of a loss, say
        replace(CLASSIFICATION[2], higher_is_better=True),  # the lower the measured, the higher the shown
    ):
        assert choose(history, direction)["best"][0] == tops.index(min(tops)) + 1
    assert choose(history, CLASSIFICATION[2])["best"] == found["best"], "the lowest error is of the highest accuracy"


@given(losses=st.lists(st.sampled_from((None, 1.0, 2.0, 3.0)), min_size=1, max_size=6))
def test_the_epoch_of_the_lowest_loss_is_the_first_of_those_measured(losses: list[float | None]) -> None:
    found = choose([record(i, test_loss=loss) for i, loss in enumerate(losses, start=1)], CLASSIFICATION[0])
    measured = [loss for loss in losses if loss is not None]
    lowest = losses.index(min(measured)) + 1 if measured else None
    assert ("lowest-loss" in found) == (lowest is not None)
    assert lowest is None or found["lowest-loss"][0] == lowest


def test_an_epoch_that_does_not_measure_the_main_metric_is_not_the_best() -> None:
    found = choose([record(1, metrics={"similarity": 0.5})], CLASSIFICATION[0])
    assert found == {"last": (1, {"similarity": 0.5})}


def test_only_main_epochs_are_shown(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    add(worker, "r1", record(1, 0.9, stage="init", test_loss=1.0))
    result = columns(store).result
    assert result is not None
    assert (result.chosen, result.wall_seconds) == ({}, 2.0)
    assert len(store.history("r1")) == 1


def test_a_broken_record_leaves_nothing_behind(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    for broken in (record(2, train_loss=math.nan), record(2, waited=None)):
        with pytest.raises((ValueError, TypeError)):
            finish(worker, "r1", record(1), broken)
    assert store.history("r1") == ()
    assert columns(store).status == "running"


def test_restarting_forgets_the_epochs(store: Store, worker: Worker) -> None:
    store.plan([row(), row("r2")])
    worker.claim(["r1", "r2"], ORIGIN)
    for run_id in ("r1", "r2"):
        add(worker, run_id, record(1))
    with worker.holding("r1") as held:
        held.restart()
    assert store.history("r1") == ()
    cleared = columns(store)
    assert cleared.result is not None
    assert (cleared.result.chosen, cleared.result.wall_seconds, cleared.status) == ({}, 0.0, "running")
    assert len(store.history("r2")) == 1
    assert columns(store, "r2").last_epoch == 1


def test_failing_and_trying_again(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    fail(worker, "r1", "the loss became NaN\0")
    failed = columns(store)
    assert (failed.status, failed.reason) == ("failed", "the loss became NaN\N{REPLACEMENT CHARACTER}")
    assert worker.claim(["r1"], ORIGIN) == [], "what failed is tried again only when it was asked for again"
    store.reopen(["r1"])
    assert worker.claim(["r1"], ORIGIN) == ["r1"]
    again = columns(store)
    assert (again.status, again.reason, again.attempt) == ("running", None, 2)
    assert again.result == failed.result, "it goes on with what it had"


def test_provenance_grows_only_when_it_differs(store: Store, worker: Worker) -> None:
    other = ORIGIN | {"source": "s2"}
    store.plan([row()])
    for origin, expected in (
        (ORIGIN, [ORIGIN]),
        (ORIGIN, [ORIGIN]),
        (other, [ORIGIN, other]),
        (other, [ORIGIN, other]),
        (ORIGIN, [ORIGIN, other, ORIGIN]),
    ):
        worker.claim(["r1"], origin)
        assert origins(columns(store)) == expected
        worker.release(["r1"])


def test_a_run_that_begins_again_forgets_where_its_epochs_came_from(store: Store, worker: Worker) -> None:
    other = ORIGIN | {"source": "s2"}
    store.plan([row()])
    for origin in (ORIGIN, other):
        worker.claim(["r1"], origin)
        with worker.holding("r1") as held:
            held.restart()
        worker.release(["r1"])
    assert origins(columns(store)) == [other]


def test_a_complete_result_stays_beside_that_of_another_code(store: Store, worker: Worker) -> None:
    other = ORIGIN | {"source": "s2"}
    store.plan([row(epochs=1)])
    for origin, top1 in ((ORIGIN, 0.1), (other, 0.2)):
        worker.claim(["r1"], origin)
        with worker.holding("r1") as held:
            held.finish([record(1, top1)], "none")
        store.train_again(["r1"])
    assert [result.code for result in store.results("r1")] == ["s1", "s2"]
    assert (top1_of(columns(store), "last"), top1s(store)) == (0.2, [0.2]), "the newest is the current one"
    (asked,) = store.runs(["r1"], code="s1")
    assert (top1_of(asked, "last"), [e.metrics["top1"] for e in store.history("r1", "s1")]) == (0.1, [0.1])
    worker.claim(["r1"], ORIGIN)
    assert {result.code for result in store.results("r1")} == {
        "s1",
        "s2",
    }  # the oldest first; s1 may begin a second later
    assert store.history("r1") == (), "it begins anew"
    assert [e.metrics["top1"] for e in store.history("r1", "s2")] == [0.2]


def test_an_unfinished_result_moves_to_the_code_that_goes_on_with_it(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    add(worker, "r1", record(1, 0.25))
    worker.release(["r1"])
    worker.claim(["r1"], ORIGIN | {"source": "s2"})
    assert [result.code for result in store.results("r1")] == ["s2"]
    assert top1s(store) == [0.25]


# --- whose it is ------------------------------------------------------------------------------------------------


def test_what_another_process_trains_is_not_taken(store: Store, worker: Worker, store_url: str | None) -> None:
    store.plan([row("r1"), row("r2"), row("r3")])
    with closing(Store(store.folder, store_url)) as again, Worker(again) as other:
        assert other.claim(["r2"], ORIGIN) == ["r2"]
        assert worker.claim(["r3", "r2", "r1"], ORIGIN) == ["r3", "r1"]
        assert other.claim(["r1", "r2", "r3"], ORIGIN) == []
        with pytest.raises(ClaimLost, match="r2 was taken over"), worker.holding("r2"):
            pass
        assert (other.claims(), sorted(worker.claims())) == (["r2"], ["r1", "r3"])
    assert store.statuses(["r2"]) == {"r2": "planned"}, "a worker that ends releases what it holds"


def test_every_run_is_claimed_once(store: Store, store_url: str | None) -> None:
    names = [f"r{number}" for number in range(60)]
    store.plan(row(name) for name in names)
    claimed: list[list[str]] = []

    def train(order: list[str]) -> None:
        with closing(Store(store.folder, store_url)) as own, Worker(own) as worker:
            mine: list[str] = []
            for start in range(0, 60, 5):
                mine += worker.claim(order[start : start + 5], ORIGIN)
            for name in mine:
                finish(worker, name, record(1))
            claimed.append(mine)

    threads = [threading.Thread(target=train, args=(order,)) for order in (names, names[::-1], names, names[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for mine in claimed for name in mine) == sorted(names)
    assert set(store.statuses(names).values()) == {"done"}


def test_release_touches_only_our_running_runs(store: Store, worker: Worker) -> None:
    store.plan([row(f"r{i}") for i in range(1, 7)])
    worker.claim(["r1", "r2", "r3", "r5"], ORIGIN)
    stranger(store, "r6")
    finish(worker, "r2", record(1))
    fail(worker, "r3", "broken")
    worker.release(["r1", "r2", "r3", "r4", "r6"])
    expected = {"r1": "planned", "r2": "done", "r3": "failed", "r4": "planned", "r5": "running", "r6": "running"}
    assert store.statuses(expected) == expected


def test_released_runs_keep_their_epochs(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    add(worker, "r1", record(1))
    worker.release(["r1"])
    assert len(store.history("r1")) == 1
    assert columns(store).claimed_by is None


def test_the_claims_of_a_process_that_ended_here_are_free_at_once(store: Store, worker: Worker) -> None:
    store.plan([row("r1"), row("r2")])
    ended = replace(ME, started="1")
    stranger(store, "r1", machine=ended.machine, pid=ended.pid, started=ended.started)
    stranger(store, "r2", machine=ME.machine, pid=ME.pid, started=ME.started)
    survey = worker.survey(["r1", "r2"])
    assert survey.free == {"r1"}
    assert survey.elsewhere.keys() == {"r2"}
    assert worker.claim(["r1", "r2"], ORIGIN) == ["r1"]


def test_the_claims_of_a_silent_machine_are_free_after_the_lease(store: Store, worker: Worker) -> None:
    clock = worker._watch.clock = Clock()
    store.plan([row("r1"), row("r2")])
    silent, beating = stranger(store, "r1"), stranger(store, "r2")
    for _ in range(11):
        clock.now += worker.lease / 10
        beat(store, beating)
        assert worker.claim(["r2"], ORIGIN) == []
        survey = worker.survey(["r1", "r2"])
    assert survey.free == {"r1"}
    assert worker.claim(["r1", "r2"], ORIGIN) == ["r1"]
    assert columns(store, "r2").claimed_by == beating
    beat(store, silent)
    assert worker.claims() == ["r1"], "who comes back too late does not get it back"


def test_a_run_that_nobody_is_said_to_train_is_free(store: Store, worker: Worker) -> None:
    store.plan([row()])
    stranger(store, "r1")
    rewrite(store, "UPDATE runs SET claimed_by = NULL")
    assert worker.survey(["r1"]).free == {"r1"}
    assert worker.claim(["r1"], ORIGIN) == ["r1"]


def test_who_lost_a_claim_writes_nothing(store: Store, worker: Worker, store_url: str | None) -> None:
    store.plan([row()])
    with closing(Store(store.folder, store_url)) as again, Worker(again) as suspended:
        suspended.claim(["r1"], ORIGIN)
        add(suspended, "r1", record(1))
        rewrite(store, f"UPDATE workers SET started = '1' WHERE id = '{suspended.id}'")
        assert worker.claim(["r1"], ORIGIN) == ["r1"]
        before = store.runs()
        for write in (add, finish):
            with pytest.raises(ClaimLost):
                write(suspended, "r1", record(1), record(2))
        with pytest.raises(ClaimLost):
            fail(suspended, "r1", "broken")
        suspended.release(["r1"])
    assert store.runs() == before
    assert len(store.history("r1")) == 1
    assert worker.claims() == ["r1"]


def test_a_claim_is_void_once_there_was_another_attempt(store: Store, worker: Worker) -> None:
    store.plan([row()])
    worker.claim(["r1"], ORIGIN)
    rewrite(store, "UPDATE runs SET attempt = attempt + 1")
    with pytest.raises(ClaimLost):
        add(worker, "r1", record(1))
    worker.release(["r1"])
    assert worker.claim(["r1"], ORIGIN) == ["r1"]
    add(worker, "r1", record(1))
    assert columns(store).attempt == 3


def test_nothing_is_held_of_an_unknown_run(store: Store, worker: Worker) -> None:
    store.plan([row()])
    with pytest.raises(ClaimLost), worker.holding("r1"):
        pass
    with pytest.raises(ClaimLost), worker.holding("r9"):
        pass
