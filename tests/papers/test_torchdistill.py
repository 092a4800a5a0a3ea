"""torchdistill's ImageNet study as it is resolved, against the settings of ReviewKD's sheet, sections 2.1 to 2.4."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdtable import papers
from kdtable.models.outputs import Outputs
from kdtable.planning.request import Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.recipes.recipe import Recipe
from tests.methods.golden_sets import batch, built, objective
from tests.papers.formulas import LABELS, ce, draw, logits
from tests.papers.resolving import Said, assert_said, cells, courses, member, run_of, runs, teacher

PAIR = "tv_resnet34:tv_resnet18"
REVIEW = Recipe(
    epochs=100,
    batch_size=3 * 64,
    lr=0.075,
    milestones=(30, 60, 90),
    lr_factor=0.1,
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
    crop_padding=0,
)
THREE_OF_256 = replace(REVIEW, batch_size=3 * 256, lr=0.3)
THREE_OF_171 = replace(REVIEW, batch_size=3 * 171)

ROWS = {
    "vanilla": Said(REVIEW, {"ce": 1.0}),
    "kd": Said(THREE_OF_256, {"ce": 0.5, "kd": 0.5}, {"kd_temperature": 1.0}),
    # layer3 and layer4
    "at": Said(THREE_OF_256, {"ce": 1.0, "at": 1000.0}, {"at_stages": "2,3"}),
    "ft": Said(
        replace(REVIEW, epochs=90, batch_size=256, lr=0.1), {"ce": 1.0, "ft": 1000.0}, {"init_lr": 0.01}, {"init": 1}
    ),
    "crd": Said(
        replace(REVIEW, batch_size=3 * 85, lr=0.1),
        {"ce": 1.0, "crd": 0.8},
        {"dim": 128, "negatives": 16384, "tau": 0.07, "bank_momentum": 0.5, "mode": "exact"},
    ),
    "cse-l2": Said(replace(THREE_OF_171, epochs=90, lr=0.2, milestones=(30, 60)), {"ce": 1.0, "l2": 15.0}),
    "pad-l2": Said(
        replace(THREE_OF_171, epochs=30, lr=0.002, milestones=()),
        {"ce": 1.0, "pad": 1.0},
        {"first_lr": 0.2, "l2_weight": 15.0},
        {"l2": 90},
    ),
    "reviewkd": Said(
        REVIEW,
        {"ce": 1.0, "reviewkd": 1.0},
        {"mid": 512, "student_taps": "stages", "teacher_taps": "stages", "teacher_mode": "eval"},
    ),
}


def the_run(row: str) -> Run:
    return run_of("torchdistill", row, PAIR, "imagenet")


def test_rows() -> None:
    own = papers.load("torchdistill").rows
    assert list(own) == list(ROWS)
    found = runs("torchdistill", *own)
    assert found.keys() == {("imagenet", row, PAIR) for row in ROWS}
    for (_, row, _), run in found.items():
        assert_said(run, ROWS[row])
        assert run.start is None


def test_photographs_are_not_padded() -> None:
    """What a run of them would not show."""
    assert papers.load("torchdistill").recipe == REVIEW


def test_seeds_and_data() -> None:
    assert {cell.run.seed for cell in cells("torchdistill")} == {1}
    assert papers.load("torchdistill").data == "imagenet"


# --- what is trained ---------------------------------------------------------------------------------------------


def dropping(lr: float, epochs: int, *drops: int) -> list[float]:
    """Rates that are divided by 10 after some epochs."""
    return [lr / 10 ** sum(epoch > drop for drop in drops) for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize(
    ("row", "rates"),
    [
        ("kd", {"main": dropping(0.3, 100, 30, 60, 90)}),
        ("ft", {"init": [0.01], "main": dropping(0.1, 90, 30, 60, 90)}),
        ("cse-l2", {"main": dropping(0.2, 90, 30, 60)}),
        ("pad-l2", {"l2": dropping(0.2, 90, 30, 60), "main": [0.002] * 30}),
        ("reviewkd", {"main": dropping(0.075, 100, 30, 60, 90)}),
    ],
)
def test_learning_rates_and_weights(row: str, rates: dict[str, list[float]]) -> None:
    found = courses(member(the_run(row)))
    early = {"init": {"reconstruction": 1.0}, "l2": {"ce": 1.0, "l2": 15.0}}
    assert list(found) == list(rates)
    for stage, course in found.items():
        assert course.rates == pytest.approx(rates[stage], rel=1e-9)
        weights = early.get(stage, ROWS[row].terms)
        assert course.weights == {term: [weight] * len(rates[stage]) for term, weight in weights.items()}
        assert course.optimizer == (0.9, False, 1e-4)


def test_as_a_guest_pad_begins_at_its_hosts_rate() -> None:
    (cell,) = resolve(Request(["resnet56:resnet20"], ["pad-l2"], [1]), teacher)
    stages = courses(member(cell.run))
    assert [stages[name].rates[0] for name in ("l2", "main")] == [papers.load("crd").recipe.lr] * 2


def embedded() -> tuple[Outputs, Outputs]:
    return Outputs(logits(1), embedding=draw(5, 6, seed=2)), Outputs(logits(3), embedding=draw(5, 6, seed=4))


def test_objective_of_l2() -> None:
    (student, teacher), run = embedded(), the_run("cse-l2")
    loss = objective(built(run.row, student, teacher, run.objective), student, teacher, batch(LABELS))
    gap = (student.embedding - teacher.embedding).square().mean()
    torch.testing.assert_close(loss, ce(student.logits) + 15 * gap)


def test_objective_of_pad() -> None:
    (student, teacher), run = embedded(), the_run("pad-l2")
    method: Any = built(run.row, student, teacher, run.objective)
    loss = objective(method.train(), student, teacher, batch(LABELS))
    v = method.variance(student.embedding)
    distance = ((student.embedding - teacher.embedding).square() / (1e-6 + v.exp()) + v).mean()
    torch.testing.assert_close(loss, ce(student.logits) + distance)
