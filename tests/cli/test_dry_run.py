"""The plan's estimate of time. The plan itself is looked at in ``test_run.py``."""

from functools import partial
from math import inf
from pathlib import Path

import pytest

from kdtable import papers
from kdtable.cli.dry_run import duration
from kdtable.execution.estimate import Calibration, Estimate
from kdtable.hardware import available_cores
from tests.cli.command import SMALL, TEACHER, Call, assert_refused, listing, write_images

PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "2", *SMALL)
GRID = (*PAIR, *TEACHER, "--methods", "vanilla,kd", "--seeds", "2", "--dry-run")


def _words(text: str) -> str:
    """Without the line breaks of a narrow terminal."""
    return " ".join(text.split())


def _estimated(monkeypatch: pytest.MonkeyPatch, cost: Estimate) -> None:
    monkeypatch.setattr("kdtable.cli.dry_run.estimate", lambda *_, **__: cost)


def test_a_plan_says_how_long_it_would_take(call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing(tiny)
    done = call(*GRID)
    assert (done.code, done.err) == (0, "")
    assert "Training this on this machine would take about " in _words(done.out)
    assert "if nothing else keeps it busy (estimated from one step of each kind of run)." in _words(done.out)
    assert listing(tiny) == before
    _estimated(monkeypatch, Estimate(4000.0, 2, 2))
    assert "this machine would take about 1 h 7 min, if" in _words(call(*GRID).out)


def test_a_plan_of_which_not_all_kinds_were_timed_says_so(
    call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _estimated(monkeypatch, Estimate(100.0, 1, 2))
    told = "(estimated from one step of 1 of 2 kinds of runs, the others counted like their student's first)."
    assert told in _words(call(*GRID).out)


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_a_plan_counts_the_workers_that_would_train_it(call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _estimated(monkeypatch, Estimate(100.0, 2, 2))
    told = "Training this on this machine in 2 worker processes would take about 2 min"
    assert told in _words(call(*GRID, "--jobs", "2").out)
    assert "worker processes" not in call(*GRID, "--jobs", "2", "--seeds", "1").out


def test_a_plan_whose_teacher_is_not_there_has_an_estimate_too(call: Call, tmp_path: Path) -> None:
    write_images(tmp_path / "tiny.npz")
    before = listing(tmp_path)
    done = call(*PAIR, "--methods", "kd,crd", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert "Not there yet" in done.out
    assert "would take about" in _words(done.out)
    assert listing(tmp_path) == before


def test_nothing_to_train_takes_no_time_to_tell(call: Call, after_grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtable.cli.dry_run.estimate", lambda *_: pytest.fail("something was timed"))
    rows = ("--methods", "vanilla,kd,at", "--seeds", "2", "--epochs", "2", *SMALL, "--dry-run")
    done = call("run", "--pairs", "resnet14:resnet8", *rows)
    assert "0 to train" in done.out
    assert "would take" not in done.out


def test_a_precision_that_the_device_lacks_is_refused_before_anything_is_printed(call: Call, tiny: Path) -> None:
    assert_refused(call(*GRID, "--precision", "tf32"), "tf32", "CUDA", "fp32 or bf16")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (40.4, "40 s"),
        (89, "89 s"),
        (91, "2 min"),
        (7 * 60 + 20, "7 min"),
        (59.6 * 60, "1 h 0 min"),
        (3 * 3600 + 20 * 60, "3 h 20 min"),
        (52 * 3600, "2 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


ON_DIGITS = [name for name in papers.names() if papers.load(name).task != "detection"]


@pytest.mark.parametrize("paper", [*ON_DIGITS, "detection"])
def test_steps_of_every_row_can_be_timed(call: Call, paper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtable.execution.estimate.Calibration", partial(Calibration, budget=inf))
    rows = ",".join(papers.load(paper).rows)
    data, pair = ("shapes", "fasterrcnn_w16:fasterrcnn_w8") if paper == "detection" else ("digits", "resnet20:resnet8")
    tiny = ("--seeds", "1", "--epochs", "2", "--data", data, "--batch-size", "16", "--device", "cpu")
    done = call("run", "--paper", paper, "--pairs", pair, "--methods", rows, *tiny, "--dry-run")
    assert done.code == 0, done.out + done.err
    assert "(estimated from one step of each kind of run)" in _words(done.out)
