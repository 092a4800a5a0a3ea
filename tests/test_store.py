"""The store: transitions of runs, repair, refusals, locks."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtable import store as store_module
from kdtable.errors import BadRequest
from kdtable.store import FILE_NAME, SCHEMA_VERSION, Store

ORIGIN = {"source": "s1", "numerics": {"threads": 1}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "results")) as opened:
        yield opened


def row(run_id: str = "r1", **changes: Any) -> dict[str, Any]:
    values = {
        "id": run_id,
        "protocol_id": "p",
        "row": "kd",
        "student": "resnet8",
        "teacher": "resnet14",
        "teacher_sha256": "0" * 64,
        "data": "digits",
        "seed": 1,
        "precision": "fp32",
        "meaning": "{}",
        "epochs": 3,
        "status": "planned",
    }
    return values | changes


def record(epoch: int, top1: float = 0.5, **changes: Any) -> dict[str, Any]:
    values = {
        "stage": "main",
        "epoch": epoch,
        "lr": 0.05,
        "train_loss": 1.0,
        "train_top1": 0.4,
        "test_top1": top1,
        "test_top5": 0.9,
        "seconds": 2.0,
        "members": 3,
        "terms": {"ce": 1.0},
    }
    return values | changes


def columns(store: Store, run_id: str = "r1") -> dict[str, Any]:
    return next(run for run in store.all_runs() if run["id"] == run_id)


def test_schema(store: Store) -> None:
    with closing(sqlite3.connect(store.folder / FILE_NAME)) as db:
        tables = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
        assert tables == {"meta", "runs", "epochs", "teachers"}
        assert db.execute("select schema_version from meta").fetchall() == [(SCHEMA_VERSION,)]
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)


def test_planning_adds_only_what_is_new(store: Store) -> None:
    store.plan([row("r1"), row("r2")])
    store.start(["r1"], ORIGIN)
    before = store.all_runs()
    store.plan([row("r2"), row("r1")])
    assert store.all_runs() == before
    store.plan([row("r3")])
    assert [run["id"] for run in store.all_runs()] == ["r1", "r2", "r3"]
    assert store.statuses(["r1", "r2", "r3", "r4"]) == {"r1": "running", "r2": "planned", "r3": "planned"}


def test_planning_nothing(store: Store) -> None:
    store.plan([])
    assert store.all_runs() == []


def test_life_of_a_run(store: Store) -> None:
    store.plan([row()])
    fresh = columns(store)
    assert (fresh["status"], fresh["started"], fresh["finished"]) == ("planned", None, None)
    assert fresh["created"]
    store.start(["r1"], ORIGIN)
    assert columns(store)["status"] == "running"
    store.record("r1", [record(1, 0.3)], done=False)
    assert columns(store)["status"] == "running"
    store.record("r1", [record(1, 0.3), record(2, 0.6), record(3, 0.5, test_top5=0.8)], done=True)
    done = columns(store)
    assert (done["status"], done["last_epoch"], done["last_top1"], done["last_top5"]) == ("done", 3, 0.5, 0.8)
    assert (done["best_epoch"], done["best_top1"], done["best_top5"]) == (2, 0.6, 0.9)
    assert done["wall_seconds"] == 6.0
    assert json.loads(done["terms"]) == {"ce": 1.0}
    assert done["finished"] >= done["started"] >= done["created"]


def test_recording_twice_changes_nothing(store: Store) -> None:
    store.plan([row()])
    history = [record(1), record(2)]
    store.record("r1", history, done=False)
    before = (store.all_runs(), store.epochs_of("r1"))
    store.record("r1", history, done=False)
    assert (store.all_runs(), store.epochs_of("r1")) == before


def test_a_gap_in_the_history_is_repaired(store: Store) -> None:
    store.plan([row()])
    store.record("r1", [record(2)], done=False)
    store.record("r1", [record(1), record(2), record(3)], done=True)
    assert [r["epoch"] for r in store.epochs_of("r1")] == [1, 2, 3]


def test_recording_an_empty_history(store: Store) -> None:
    store.plan([row()])
    store.record("r1", [], done=False)
    assert store.epochs_of("r1") == []
    assert columns(store)["last_top1"] is None


@given(tops=st.lists(st.sampled_from((0.1, 0.2, 0.3)), min_size=1, max_size=6))
def test_the_best_epoch_is_the_first_of_the_highest(tops: list[float]) -> None:
    summary = store_module._summary([record(i, top1) for i, top1 in enumerate(tops, start=1)])
    assert summary["best_epoch"] == tops.index(max(tops)) + 1
    assert summary["last_top1"] == tops[-1]


def test_an_unknown_run_cannot_be_recorded(store: Store) -> None:
    store.plan([row()])
    with pytest.raises(Exception, match="No row"):
        store.record("r9", [record(1)], done=False)


def test_a_broken_record_leaves_nothing_behind(store: Store) -> None:
    store.plan([row()])
    with pytest.raises(KeyError):
        store.record("r1", [record(1), {"stage": "main", "epoch": 2}], done=True)
    with pytest.raises(store_module.sa.exc.IntegrityError):
        store.record("r1", [record(1), record(2, lr=None)], done=True)
    assert store.epochs_of("r1") == []
    assert columns(store)["status"] == "planned"


def test_restarting_forgets_the_epochs(store: Store) -> None:
    store.plan([row(), row("r2")])
    for run_id in ("r1", "r2"):
        store.start([run_id], ORIGIN)
        store.record(run_id, [record(1)], done=False)
    store.restart("r1")
    assert store.epochs_of("r1") == []
    cleared = columns(store)
    shown = ("last_epoch", "last_top1", "last_top5", "best_epoch", "best_top1", "best_top5", "terms")
    assert [cleared[name] for name in shown] == [None] * len(shown)
    assert (cleared["wall_seconds"], cleared["status"]) == (0.0, "running")
    assert len(store.epochs_of("r2")) == 1
    assert columns(store, "r2")["last_epoch"] == 1


def test_failing_and_trying_again(store: Store) -> None:
    store.plan([row()])
    store.start(["r1"], ORIGIN)
    store.fail("r1", "the loss became NaN")
    failed = columns(store)
    assert (failed["status"], failed["reason"]) == ("failed", "the loss became NaN")
    assert failed["finished"]
    store.start(["r1"], ORIGIN)
    again = columns(store)
    assert (again["status"], again["reason"], again["started"]) == ("running", None, failed["started"])
    assert again["finished"] is None, "a run in training has not finished"


def test_release_touches_only_running_runs(store: Store) -> None:
    store.plan([row(f"r{i}") for i in range(1, 6)])
    store.start(["r1", "r2", "r3", "r5"], ORIGIN)
    store.record("r2", [record(1)], done=True)
    store.fail("r3", "broken")
    store.release(["r1", "r2", "r3", "r4"])
    expected = {"r1": "planned", "r2": "done", "r3": "failed", "r4": "planned", "r5": "running"}
    assert store.statuses(expected) == expected
    store.release_abandoned()
    assert store.statuses(expected) == expected | {"r5": "planned"}


def test_released_runs_keep_their_epochs(store: Store) -> None:
    store.plan([row()])
    store.start(["r1"], ORIGIN)
    store.record("r1", [record(1)], done=False)
    store.release(["r1"])
    assert len(store.epochs_of("r1")) == 1


def test_provenance_grows_only_when_it_differs(store: Store) -> None:
    other = ORIGIN | {"source": "s2"}
    store.plan([row()])
    for origin, expected in (
        (ORIGIN, [ORIGIN]),
        (ORIGIN, [ORIGIN]),
        (other, [ORIGIN, other]),
        (other, [ORIGIN, other]),
        (ORIGIN, [ORIGIN, other, ORIGIN]),
    ):
        store.start(["r1"], origin)
        assert json.loads(columns(store)["provenance"]) == expected


def test_epochs_come_in_order_of_training(store: Store) -> None:
    store.plan([row()])
    history = [
        record(2),
        record(10),
        record(1),
        record(2, stage="zeta"),
        record(1, stage="zeta"),
        record(1, stage="init"),
    ]
    store.record("r1", history, done=False)
    found = [(r["stage"], r["epoch"]) for r in store.epochs_of("r1")]
    assert found == [("init", 1), ("zeta", 1), ("zeta", 2), ("main", 1), ("main", 2), ("main", 10)]


def test_only_main_epochs_are_shown(store: Store) -> None:
    store.plan([row()])
    store.record("r1", [record(1, 0.9, stage="init")], done=False)
    assert columns(store)["best_top1"] is None
    assert columns(store)["wall_seconds"] == 2.0


def test_a_teachers_accuracy_is_replaced(store: Store) -> None:
    accuracy = {
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


# --- opening ----------------------------------------------------------------------------------------------------


def test_opening_again_keeps_everything(store: Store) -> None:
    store.plan([row()])
    with closing(Store(store.folder, create=False)) as again:
        assert again.all_runs() == store.all_runs()


def test_an_absent_store_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no results store"):
        Store(tmp_path / "results", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_schema_is_refused(store: Store) -> None:
    with closing(sqlite3.connect(store.folder / FILE_NAME)) as db, db:
        db.execute("update meta set schema_version = ?", (SCHEMA_VERSION + 1,))
    with pytest.raises(BadRequest, match=f"schema {SCHEMA_VERSION + 1}.*update kdtable"):
        Store(store.folder)


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database_is_left_untouched(tmp_path: Path, create: bool) -> None:
    path = tmp_path / FILE_NAME
    content = b"these are my notes, not a database\n" * 300
    path.write_bytes(content)
    with pytest.raises(BadRequest, match="cannot be read as a results store"):
        Store(tmp_path, create=create)
    assert path.read_bytes() == content


def test_a_truncated_store_is_refused(store: Store) -> None:
    store.plan([row(f"r{i}") for i in range(300)])
    store.close()
    path = store.folder / FILE_NAME
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(BadRequest, match="cannot be read as a results store"):
        Store(store.folder)


def test_another_programs_database_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table recipes (name text)")
    with pytest.raises(BadRequest):
        Store(tmp_path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select name from sqlite_master").fetchall() == [("recipes",)]


def test_a_store_whose_making_was_cut_short_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    class Cut:
        def __init__(self, table: Any) -> None:
            self.c = table.c

        def insert(self) -> Any:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_meta", Cut(store_module._meta))
        with pytest.raises(Killed):
            Store(tmp_path)
    with closing(Store(tmp_path)) as opened:
        opened.plan([row()])


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(BadRequest, match="cannot be written to"):
        Store(tmp_path / "results")


def test_nothing_is_left_of_the_probe(store: Store) -> None:
    assert not list(store.folder.glob(".writable-*"))


# --- other processes --------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from kdtable.store import Store
with Store(Path(sys.argv[1])).training_lock():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the training lock."""
    command = [sys.executable, "-c", HOLDER, str(store.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_training_lock_excludes_processes_and_ends_with_them(store: Store, holder: subprocess.Popen[str]) -> None:
    assert store.in_training()
    with pytest.raises(BadRequest, match="another kdtable is training"), store.training_lock():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not store.in_training()
    with store.training_lock():
        pass


def test_the_training_lock_excludes_a_second_holder_in_one_process(store: Store) -> None:
    with store.training_lock():
        with pytest.raises(BadRequest), store.training_lock():
            pass
        assert store.in_training()
    assert not store.in_training()


def test_reading_while_another_connection_writes(store: Store) -> None:
    store.plan([row()])
    with closing(sqlite3.connect(store.folder / FILE_NAME, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        writer.execute("update runs set status = 'done'")
        with closing(Store(store.folder, create=False)) as reader:
            assert reader.statuses(["r1"]) == {"r1": "planned"}
        writer.execute("commit")
    assert store.statuses(["r1"]) == {"r1": "done"}


def test_a_run_has_a_folder_of_its_own(store: Store) -> None:
    assert store.run_folder("r1") != store.run_folder("r2")
    assert store.folder in store.run_folder("r1").parents
