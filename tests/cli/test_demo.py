"""``kdtable demo``."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdtable.data.spec import BUILT_IN
from tests.cli.command import Call, runs_in


def test_the_demo_prints_a_table_and_commands_that_work(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = sys.modules["kdtable.cli.demo"]  # kdtable.cli.demo is the command
    for name, less in (("ROWS", "vanilla,kd"), ("SEEDS", "2"), ("TEACHER_EPOCHS", 1), ("EPOCHS", 1)):
        monkeypatch.setattr(module, name, less)
    done = call("demo", "a place")
    assert done.code == 0, done.err
    assert "digits-few" in done.out
    assert "was trained on digits" not in done.err
    runs = runs_in(tmp_path / "a place" / "results")
    assert sorted(str(run["row"]) for run in runs.values() if run["data"] == "digits-few-16") == sorted(
        2 * ["vanilla", "kd"]
    )
    commands = re.findall(r"^  kdtable (.*?)    # ", done.out.replace("\\\n", " "), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["show", "report", "run", "list"]
    for command in commands:
        done = call(*shlex.split(command))
        assert done.code == 0, done.err
    assert Path("report.html").stat().st_size > 10_000
    kd, results = "digits-few-16:kd:resnet14:resnet8", ("--results", "a place/results")
    assert "--data digits-few --image-size 16" in call("show", kd, *results).out.replace("\n", " ")
    first = next(run_id for run_id, run in runs.items() if run["row"] == "kd")
    evaluated = call("evaluate", first, "--data", "digits", *results, "--device", "cpu")
    assert evaluated.code == 0, evaluated.err
    again = call("demo", "a place")
    assert again.code == 0, again.err
    assert "epoch" not in again.err


def test_the_demo_of_detectors(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = sys.modules["kdtable.cli.demo"]
    smaller = {
        "DETECTOR_TEACHER_EPOCHS": 1,
        "DETECTOR_EPOCHS": 1,
        "DETECTOR_SEEDS": "1",
        "DETECTOR_ROWS": "vanilla,fitnet",
    }
    for name, less in {**smaller, "DETECTORS": "retinanet_w8:retinanet_w8"}.items():
        monkeypatch.setattr(module, name, less)
    monkeypatch.setitem(BUILT_IN.targets, "shapes", replace(BUILT_IN["shapes"], train_count=8, test_count=6))
    done = call("demo", "a place", "--detection")
    assert done.code == 0, done.err
    assert "AP50" in done.out
    runs = runs_in(tmp_path / "a place" / "results")
    (fitnet,) = (key for key, run in runs.items() if run["row"] == "fitnet")
    commands = re.findall(r"^  kdtable (.*?)    # ", done.out, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["show", "plot", "list"]
    for command in commands:
        done = call(*shlex.split(command.replace(" RUN ", f" {fitnet[:8]} ")))
        assert done.code == 0, done.err
    assert Path("detections.png").stat().st_size > 10_000
    again = call("demo", "a place", "--detection")
    assert again.code == 0, again.err
    assert "epoch" not in again.err
