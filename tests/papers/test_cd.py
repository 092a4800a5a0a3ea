"""Channel Distillation as it is resolved, against its sheet's sections 1 to 3."""

from dataclasses import replace

import pytest
import torch

from kdtable import papers
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.methods.golden_sets import batch, built, objective
from tests.methods.test_golden_cd import connected
from tests.papers.formulas import LABELS, ce, draw, kl, logits, spatial_means
from tests.papers.resolving import Said, assert_said, cells, courses, member, run_of, runs, series

CIFAR = Recipe(
    epochs=200,
    batch_size=128,
    lr=0.1,
    milestones=(60, 120, 160),
    lr_factor=0.2,
    momentum=0.9,
    nesterov=False,
    weight_decay=5e-4,
    crop_padding=4,
    crop_fill="reflect",
)
IMAGENET = Recipe(
    epochs=100,
    batch_size=256,
    lr=0.1,
    milestones=(30, 60, 90),
    lr_factor=0.1,
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
    crop_padding=0,
)
RECIPES = {"cifar100": CIFAR, "imagenet": IMAGENET}
NETWORKS = {"cifar100": "cd_resnet152:cd_resnet50", "imagenet": "tv_resnet34:tv_resnet18"}
#: From which epoch on.
RATES = {
    "cifar100": {1: 0.1, 61: 0.02, 121: 0.004, 161: 0.0008},
    "imagenet": {1: 0.1, 31: 0.01, 61: 0.001, 91: 0.0001},
}
WEIGHTS = {
    ("cifar100", "cd+gkd"): {"ce": {1: 1.0}, "gkd": {1: 0.1}, "cd": {1: 6.0}},
    ("cifar100", "cd+gkd+edt"): {
        "ce": {1: 0.0, 61: 1.0},
        "gkd": {1: 0.0, 61: 0.1},
        "cd": {1: 6.0, 60: 5.4, 160: 4.86},
    },
    ("imagenet", "cd+gkd"): {"ce": {1: 1.0}, "gkd": {1: 1.0}, "cd": {1: 6.0, 30: 5.4, 60: 4.86, 90: 4.374}},
    ("imagenet", "cd+gkd+edt"): {
        "ce": {1: 0.0, 31: 1.0},
        "gkd": {1: 0.0, 31: 1.0},
        "cd": {1: 6.0, 30: 5.4, 60: 4.86, 90: 4.374},
    },
}
KINDS = pytest.mark.parametrize("kind", RECIPES)

TRAIN = {"teacher_mode": "train"}
GKD = {"gkd_temperature": 1.0, "teacher_mode": "train"}


def said(kind: str, row: str) -> Said:
    """What the sheet's section 2 says of a row."""
    gkd = {"ce": 1.0, "gkd": 0.1 if kind == "cifar100" else 1.0, "cd": 6.0}
    # "lrdv1" changes nothing on CIFAR, and its factors are 1 but for the channels'.
    decaying = () if kind == "cifar100" else ("cd",)
    rows = {
        "vanilla": ({"ce": 1.0}, {}, ()),
        "kd": ({"ce": 1.0, "kd": 1.0}, {"kd_temperature": 1.0}, ()),
        "cd": ({"ce": 1.0, "cd": 6.0}, TRAIN, ()),
        "cd+gkd": (gkd, GKD, decaying),
        "cd+gkd+edt": (gkd, GKD, ("ce", "gkd", "cd")),
    }
    terms, params, changing = rows[row]
    return Said(RECIPES[kind], terms, params, {}, changing)


def test_rows() -> None:
    own = papers.load("cd").rows
    assert list(own) == ["vanilla", "kd", "cd", "cd+gkd", "cd+gkd+edt"]
    found = runs("cd", *own)
    assert found.keys() == {(kind, row, NETWORKS[kind]) for kind in RECIPES for row in own}
    for (kind, row, pair), run in found.items():
        assert_said(run, said(kind, row))
        assert f"{run.teacher.network if run.teacher else pair.partition(':')[0]}:{run.student}" == pair
        assert (run.teacher is None, run.start) == (row == "vanilla", None)


def test_photographs_are_not_padded() -> None:
    """What a run of them would not show."""
    assert papers.load("cd").on("imagenet").recipe == IMAGENET


def test_borrowed_rows_are_trained_by_its_recipe() -> None:
    for row in ("at", "fitnet"):
        assert run_of("cd", row, NETWORKS["imagenet"], "imagenet").recipe == IMAGENET


def test_seeds_and_data() -> None:
    assert {cell.run.seed for cell in cells("cd")} == {1}
    assert papers.load("cd").data == "cifar100"


def test_images_are_normalised_as_its_code_does() -> None:
    data = run_of("cd", "vanilla", NETWORKS["cifar100"], "cifar100").data
    assert data.mean == pytest.approx([x / 255 for x in (125.3, 123.0, 113.9)], rel=1e-12)
    assert data.std == pytest.approx([x / 255 for x in (63.0, 62.1, 66.7)], rel=1e-12)


def test_as_the_paper_has_it_the_teacher_is_in_eval_mode() -> None:
    rows = ("cd", "cd+gkd", "cd+gkd+edt")
    code, paper = runs("cd", *rows), runs("cd", *rows, reading="paper")
    for key, run in paper.items():
        own = code[key].objective
        assert run == replace(code[key], objective=replace(own, params=replace(own.params, teacher_mode="eval")))


# --- what is trained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "row"), WEIGHTS)
def test_learning_rates_and_weights(kind: str, row: str) -> None:
    course, epochs = courses(member(run_of("cd", row, NETWORKS[kind], kind)))["main"], RECIPES[kind].epochs
    assert course.rates == pytest.approx(series(epochs, RATES[kind]), rel=1e-12)
    assert list(course.weights) == ["ce", "gkd", "cd"]
    for term, values in WEIGHTS[kind, row].items():
        assert course.weights[term] == pytest.approx(series(epochs, values), rel=1e-12)
    assert course.optimizer == (0.9, False, RECIPES[kind].weight_decay)


@KINDS
@pytest.mark.parametrize("epoch", [1, 30, 59, 60, 61, 100])
def test_objective(kind: str, epoch: int) -> None:
    """Behind the connectors; the teacher gets the second and the last image wrong."""
    run, right = run_of("cd", "cd+gkd+edt", NETWORKS[kind], kind), torch.tensor([0, 2, 3])
    s, t = ([draw(5, 4 + i, 8 >> i, 8 >> i, seed=seed + i) for i in range(4)] for seed in (10, 20))
    z_s, z_t = logits(1), logits(2)
    z_t[torch.arange(5), LABELS] = torch.tensor([9.0, -9, 9, 9, -9], dtype=torch.float64)
    student, teacher = Outputs(z_s, stages=tuple(s)), Outputs(z_t, stages=tuple(t))
    method = connected(built(run.row, student, teacher, run.objective, recipe=run.recipe))
    w = {term: series(epoch, values)[-1] for term, values in WEIGHTS[kind, run.row].items()}
    expected = w["ce"] * ce(z_s) + w["gkd"] * kl(z_s[right], z_t[right], 1) + w["cd"] * spatial_means(s, t)
    torch.testing.assert_close(objective(method, student, teacher, batch(LABELS), epoch), expected)
