"""Channel Distillation as it is resolved, against its code's golden series and its sheet's sections 2 and 3."""

from dataclasses import replace

import pytest

from kdtable import papers
from kdtable.recipes.recipe import Recipe
from tests.methods.golden_sets import Case, built, by_kind, objective
from tests.methods.test_golden_cd import FAMILIES, check_at, connected, maps, with_maps
from tests.papers.resolving import Said, assert_said, cells, courses, golden, member, run_of, runs

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
GOLDEN = {"cifar100": "cifar", "imagenet": "imagenet"}
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


# --- golden series -----------------------------------------------------------------------------------------------


@KINDS
def test_learning_rates_and_weights(kind: str) -> None:
    rate, weight = golden("cd", f"lr_{GOLDEN[kind]}"), golden("cd", f"edt_{GOLDEN[kind]}_paper")
    for row, decay in (("cd+gkd", "lrdv1"), ("cd+gkd+edt", "lrdv2")):
        course = courses(member(run_of("cd", row, NETWORKS[kind], kind)))["main"]
        rate.check("lr", course.rates)
        assert course.weights.keys() == FAMILIES.keys()
        for term, family in FAMILIES.items():
            weight.check(f"{decay}__{family}", course.weights[term])
        assert course.optimizer == (0.9, False, RECIPES[kind].weight_decay)


@by_kind("cd", "cd_total")
def test_objective(case: Case) -> None:
    kind = {"cifar": "cifar100"}.get(case.hyper["dataset"], "imagenet")
    run = run_of("cd", "cd+gkd+edt", NETWORKS[kind], kind)
    for i, epoch in enumerate(case.given("epoch").tolist()):
        s, t = maps(case, leaves=True)
        logits = case.leaf("s_logits")
        student, teacher = with_maps(logits, s), with_maps(case.given("t_logits"), t)
        method = built(run.row, student, teacher, run.objective, recipe=run.recipe)
        total = objective(connected(method), student, teacher, case.given("labels"), epoch)
        total.backward()
        check_at(case, i, {"total": total, "grad_s_logits": logits.grad, "grad_s0": s[0].grad})
