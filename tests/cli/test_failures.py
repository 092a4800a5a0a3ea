"""A run that fails ends alone, with its reason."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.command import SMALL, TEACHER, Call, Done, runs_in
from tests.faults.forks import Forks

#: Attention transfer weighted so that the first step overflows.
DIVERGING = (
    *("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,at", "--epochs", "2"),
    *("--set", "weight.at=1e38", *SMALL, *TEACHER),
)


@pytest.fixture(scope="module")
def failed(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("failed")
    shutil.copytree(supplies, folder, dirs_exist_ok=True)
    return folder, forks.run(folder, *DIVERGING)


@pytest.fixture
def diverged(failed: tuple[Path, Done], tmp_path: Path) -> Path:
    """The test's folder, with the results of a grid of which one run failed."""
    shutil.copytree(failed[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_one_failed_run_of_two(failed: tuple[Path, Done]) -> None:
    done = failed[1]
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "FAILED resnet8 at seed 1: the loss became" in done.err
    assert "resnet8 vanilla seed 1 main epoch 2/2" in done.err
    assert done.errors[-1].startswith("kdtable: 1 ")
    assert "'kdtable status' has the reasons" in done.errors[-1]
    assert "│ student" in done.out
    assert "— (0/1)" in done.out


def test_the_reason_of_a_failed_run(diverged: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {run["row"]: run for run in runs_in(diverged / "results").values()}
    assert {row: run["status"] for row, run in runs.items()} == {"vanilla": "done", "at": "failed"}
    reason = str(runs["at"]["reason"])
    assert reason.startswith("the loss became ")
    trace = diverged / "results" / "runs" / str(runs["at"]["id"]) / "error.txt"
    assert "Traceback" in trace.read_text()
    monkeypatch.setenv("COLUMNS", "300")
    status = call("status")
    assert status.code == 0
    assert "1 done" in status.out
    assert "1 failed" in status.out
    assert reason in status.out
    assert str(runs["at"]["id"]) in status.out


def test_status_is_whole_in_a_pipe(diverged: Path, call: Call) -> None:
    (failed,) = (run for run in runs_in(diverged / "results").values() if run["status"] == "failed")
    status = call("status")
    assert str(failed["id"]) in status.out, status.out
    assert str(failed["reason"]) in status.out


def test_a_failed_run_is_tried_again_and_the_others_are_not(diverged: Path, call: Call) -> None:
    before = {run["row"]: run for run in runs_in(diverged / "results").values()}
    done = call(*DIVERGING)
    assert done.code == 1
    assert "1 run of resnet8 with teacher resnet14: at" in done.err
    after = {run["row"]: run for run in runs_in(diverged / "results").values()}
    assert after["vanilla"] == before["vanilla"]
    assert after["at"]["status"] == "failed"


def test_reports_count_failed_runs(diverged: Path, call: Call) -> None:
    (table,) = json.loads(call("report", "--format", "json").out)
    cells = {cell["row"]: cell for cell in table["cells"]}
    failed = cells["at (weight.at=1e+38)"]
    assert (failed["n"], failed["asked"], failed["failed"], failed["mean"]) == (0, 1, 1, None)
    assert cells["student"]["n"] == 1
    assert "1 failed" in call("report").out


def test_a_failed_teacher_is_not_installed(tiny: Path, call: Call) -> None:
    done = call("train-teachers", "resnet8", "--epochs", "1", "--lr", "1e30", *SMALL)
    assert done.code == 1
    assert "the loss became" in done.err
    assert "trained" not in done.out
    assert not (tiny / "teachers").exists()
