"""Every method on detectors through ``kdtable run``, and what it says of those that a pair cannot have."""

import json
from pathlib import Path

import pytest
import torch

from kdtable.data.spec import BUILT_IN
from kdtable.training.build import build_student
from tests.cli.command import Call, runs_in

ROWS = "vanilla,kd,fitnet,fgfi,reviewkd,dkd,mgd,dkd+reviewkd,fitnet+kd"
PAIRS = ("fasterrcnn_w16:fasterrcnn_w8", "retinanet_w16:retinanet_w8", "fasterrcnn_w16:retinanet_w8")
SHORT = ("--data", "shapes", "--seeds", "1", "--iterations", "2", "--set", "sweep_images=8")
#: Rows that a pair cannot have, and a word of the reason.
LACKING = {
    PAIRS[0]: {},
    PAIRS[1]: {"dkd": "softmax", "dkd+reviewkd": "softmax"},
    PAIRS[2]: dict.fromkeys(("kd", "dkd", "dkd+reviewkd", "fitnet+kd"), "proposes no boxes"),
}


@pytest.fixture
def teachers(tmp_path: Path) -> list[str]:
    """Untrained teachers."""
    given = []
    for name in ("fasterrcnn_w16", "retinanet_w16"):
        torch.save(build_student(name, BUILT_IN["shapes"], 5).state_dict(), tmp_path / f"{name}.pth")
        given += ["--teacher", f"{name}={name}.pth"]
    return given


@pytest.mark.slow
def test_every_method_on_every_kind_of_pair(tmp_path: Path, call: Call, teachers: list[str]) -> None:
    done = call("run", "--pairs", ",".join(PAIRS), "--methods", ROWS, *SHORT, *teachers)
    assert done.code == 0, done.err
    runs = {(f"{run['teacher']}:{run['student']}", run["row"]): run for run in runs_in(tmp_path / "results").values()}
    assert all(run["status"] in ("done", "n/a") for run in runs.values())
    for pair, lacking in LACKING.items():
        asked = {row: run for (of, row), run in runs.items() if of == pair}
        found = {row: str(run["reason"]) for row, run in asked.items() if run["status"] == "n/a"}
        assert found.keys() == lacking.keys(), pair
        assert all(word in found[row] for row, word in lacking.items())
    cells = json.loads(call("report", "--format", "json").out)[0]["cells"]
    shown = {cell["row"] for cell in cells}
    assert all(any(row.startswith(name) for row in shown) for name in ROWS.split(",") if name != "vanilla")


def test_a_method_of_classifiers_is_refused(call: Call) -> None:
    done = call("run", "--pairs", PAIRS[0], "--methods", "at", *SHORT[:6])
    assert done.code == 2
    assert "method 'at' is not one of detection, whose methods are vanilla, kd, fitnet, fgfi, reviewkd" in done.err
