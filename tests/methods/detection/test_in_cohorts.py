"""The methods train alone as in a cohort, and resume, to the bit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdtable import methods, papers
from kdtable.checkpoints import checkpoint
from kdtable.methods.objective import Objective
from kdtable.numerics.layout import to_device
from kdtable.training.build import build_member, build_student
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.detection.small import CPU, RECIPE, detection
from tests.training.test_promises import assert_same

ROWS = ("kd", "fgfi", "mgd", "dkd+reviewkd")
PARAMS: dict[str, dict[str, Any]] = {"mgd": {"sweep_images": 4}}


def member(row: str, task: Any, teacher: nn.Module) -> Member:
    settings, kind = papers.load("detection").row(row), methods.get(row, "detection")
    terms = settings.terms_for("fasterrcnn_w16", "fasterrcnn_w8")
    objective = Objective.of(kind.hyper, terms, {**settings.params, **PARAMS.get(row, {})})
    student = build_student("fasterrcnn_w8", task.images.spec, task.seed)
    return build_member(row, kind, objective, RECIPE, student=student, teacher=teacher, task=task)


def train(rows: Sequence[str], change: Callable[[Member], object] = lambda _: None) -> engine.Sink:
    task, sink = detection(), engine.Sink()
    network = build_student("fasterrcnn_w16", task.images.spec, 5)
    teacher = to_device(network, CPU).eval().requires_grad_(False)
    members = [member(row, task, teacher) for row in rows]
    for one in members:
        change(one)
    Cohort(task, FrozenTeacher(teacher, task), members, sink, workers=2).train()
    assert not sink.failures
    return sink


@pytest.fixture(scope="module")
def together() -> engine.Sink:
    return train(ROWS)


@pytest.mark.parametrize("row", ["mgd", "dkd+reviewkd"])
def test_alone_or_in_a_cohort(row: str, together: engine.Sink) -> None:
    torch.manual_seed(11)  # whatever the global generator holds
    assert_same(train([row]).states[row, RECIPE.epochs], together.states[row, RECIPE.epochs])


def test_a_matching_survives_a_restart(together: engine.Sink, tmp_path: Path) -> None:
    """Channels are matched before the first epoch alone; the second one reads what the first has left."""
    checkpoint.save(tmp_path / "c.pt", together.states["mgd", 1])
    state = checkpoint.load(tmp_path / "c.pt")
    resumed = train(["mgd"], lambda one: one.load_state(state))
    assert_same(resumed.states["mgd", RECIPE.epochs], together.states["mgd", RECIPE.epochs])


def test_losses_fall(together: engine.Sink) -> None:
    for row in ROWS:
        first, last = (together.states[row, epoch]["history"][-1]["terms"] for epoch in (1, RECIPE.epochs))
        assert all(value > 0 for value in first.values())
        assert sum(last.values()) < sum(first.values()), row
