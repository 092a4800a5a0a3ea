"""What is measured once at the end of a run, in tables: through the command."""

import json
import statistics
from pathlib import Path

import pytest

from kdtable.recipes.metrics import METRICS
from tests.cli.command import Call, runs_in

NAMES = ("agreement", "teacher-kl", "nll", "ece", "balanced")


def test_tables_show_it(after_grid: Path, call: Call) -> None:
    done = call("report", "--metric", ",".join(NAMES), "--format", "json")
    assert (done.code, done.err) == (0, "")
    cells = {
        (cell["row"].partition(" ")[0], cell["metric"]): cell["mean"]
        for table in json.loads(done.out)
        for cell in table["cells"]
        if cell["pair"] == "resnet14:resnet8"
    }
    for row in ("vanilla", "kd", "crd+kd"):
        found = [
            run for run in runs_in(after_grid / "results").values() if (run["row"], run["student"]) == (row, "resnet8")
        ]
        for name in NAMES:
            shown = cells["student" if row == "vanilla" else row, name]
            if row == "vanilla" and name in NAMES[:2]:
                assert shown is None, "it has no teacher"
                continue
            values = [METRICS[name].shown(float(str(run[f"last_{name}"]))) for run in found]
            assert shown == pytest.approx(statistics.fmean(values))


def test_the_task_with_a_balanced_test_set(after_grid: Path) -> None:
    """The tiny set has as many test images of each class, so that balanced accuracy is accuracy."""
    for run in runs_in(after_grid / "results").values():
        assert run["last_balanced"] == pytest.approx(run["last_top1"])
