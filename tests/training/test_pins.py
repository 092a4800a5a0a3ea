"""Short float64 trajectories of every row, pinned: a changed number needs a raised version.

After a change that is meant, raise the component's version and write the numbers anew:
``python -m tests.training.test_pins``.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdtable import papers
from kdtable.methods import get
from tests import dih_rows, engine

PINS = Path(__file__).parents[1] / "golden" / "own" / "trajectories.json"
ROWS = [*papers.load("crd").rows, "at+kd", *dih_rows.ROWS]
ROWS += [row for row in papers.load("zoo").rows if row not in ROWS]
STEPS = 2


def trajectory(row: str) -> dict[str, object]:
    """The loss before each step of each stage, on batches as the stream makes them."""
    task = engine.task()
    teacher = engine.teacher_of(row).double()
    member = engine.member(row, task, teacher)
    member.student.double()
    member.method.double()
    losses: dict[str, list[float]] = {}
    for stage in member.stages:
        member.begin_epoch()
        teacher.train(stage.teacher_mode == "train")
        seen = 0.0
        for _, batch in zip(range(STEPS), task.batches(stage.name, 1), strict=False):
            exact = replace(batch, images=batch.images.double())
            with torch.no_grad():
                teacher_outputs = teacher(exact.images)
            member.step(exact, teacher_outputs)
            total = member.learner.sums[0].item()
            losses.setdefault(stage.name, []).append((total - seen) / len(batch.labels))
            seen = total
        member.advance()
    return {"version": get(row).version, "losses": losses}


@pytest.mark.parametrize("row", ROWS)
def test_numbers_change_only_with_a_version(row: str) -> None:
    pinned, now = json.loads(PINS.read_text())[row], trajectory(row)
    assert now["version"] == pinned["version"], "write the numbers of the new version"
    for stage, losses in pinned["losses"].items():
        assert now["losses"][stage] == pytest.approx(losses, rel=1e-7)  # type: ignore[index]


if __name__ == "__main__":
    PINS.write_text(json.dumps({row: trajectory(row) for row in ROWS}, indent=1) + "\n")
