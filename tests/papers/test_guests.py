"""Rows of one paper in the grids of another, and papers on other data."""

import pytest

from kdtable import papers


@pytest.mark.parametrize(
    ("host", "kind", "row", "expected"),
    [
        ("cd", "npz", "at+kd", {"ce": 0.1, "kd": 0.9, "at": 1000.0}),
        ("cd", "npz", "mgd+kd", {"ce": 1.0, "kd": 1.0, "mgd": 1.0}),
        ("reviewkd", "cifar100", "kd", {"ce": 0.1, "kd": 0.9}),
        ("crd", "cifar100", "cd+gkd", {"ce": 1.0, "gkd": 0.1, "cd": 6.0}),
        ("reviewkd", "imagenet", "cd+gkd", {"ce": 1.0, "gkd": 1.0, "cd": 6.0}),
    ],
)
def test_guests_come_from_the_paper_that_has_them(host: str, kind: str, row: str, expected: dict[str, float]) -> None:
    found = papers.load(host).on(kind).row(row)
    assert (found.name, found.terms, found.recipe) == (row, expected, {})


def test_guests_begin_where_the_hosts_students_do() -> None:
    for kind, pretrained in (("cub200", True), ("imagenet", False)):
        host = papers.load("mgd").on(kind)
        assert {host.row(row).pretrained for row in ("vanilla", "mgd", "at", "cd", "reviewkd", "at+kd")} == {pretrained}


def test_guests_are_read_as_their_host_is() -> None:
    host = papers.load("cd").on("cifar100")
    assert host.row("reviewkd").params["teacher_mode"] == "train"
    assert host.read_as("paper").row("reviewkd").params["teacher_mode"] == "eval"
    assert papers.load("cd").read_as("paper").row("at") == papers.load("cd").row("at"), "which has one reading"


def test_guests_on_photographs_are_as_on_imagenet() -> None:
    found = papers.load("mgd").on("cub200").row("reviewkd")
    assert (found.params["mid"], found.params["teacher_mode"], found.schedules) == (512, "eval", {})


def test_a_guest_leaves_its_own_rates_and_its_reports_at_home() -> None:
    assert papers.load("torchdistill").on("imagenet").row("pad-l2").params["first_lr"] == 0.2
    assert papers.load("cd").on("npz").row("pad-l2").params["first_lr"] == 0.0
    assert papers.load("cd").on("npz").row("dih").test_loss is None


def test_a_paper_has_another_recipe_on_other_data() -> None:
    paper = papers.load("cd")
    there = paper.on("imagenet")
    assert (there.recipe.epochs, there.recipe.batch_size, there.recipe.weight_decay) == (100, 256, 1e-4)
    assert there.row("cd+gkd").terms["gkd"] == 1.0
    assert there.row("cd+gkd").params == paper.row("cd+gkd").params
    assert paper.on("npz").recipe == paper.recipe


@pytest.mark.parametrize(
    ("pair", "weight"),
    [("resnet56:resnet20", 0.6), ("wrn_40_2:ShuffleV1", 5.0), ("resnet32x4:ShuffleV2", 8.0), ("a:b", 1.0)],
)
def test_weights_may_be_those_of_a_pair(pair: str, weight: float) -> None:
    teacher, student = pair.split(":")
    assert papers.load("reviewkd").row("reviewkd").terms_for(teacher, student) == {"ce": 1.0, "reviewkd": weight}
