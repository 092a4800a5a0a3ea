"""What must be trained before a run: heads, classifiers, assistants."""

from dataclasses import replace

import pytest

from kdtable.data.spec import DataSpec
from kdtable.papers import Pair
from kdtable.planning.cohorts import why_uncached
from kdtable.planning.resolve import between, resolve
from kdtable.planning.teacher_refs import FileTeacher, RunTeacher
from tests.planning.on_digits import by_row, dih, teacher


def test_dih_needs_the_teachers_heads() -> None:
    found = by_row(resolve(dih("dih"), teacher))
    heads, taught = found["heads"], found["dih"]
    assert (heads.prerequisite, taught.prerequisite) == (True, False)
    assert (heads.run.student, heads.run.seed, heads.run.teacher) == ("resnet20+heads", 30, None)
    assert heads.run.start == teacher("resnet20")
    assert (taught.run.student, taught.run.start, taught.run.needs) == ("resnet8", None, (heads.run.id,))
    ref = taught.run.teacher
    assert ref is not None
    assert isinstance(ref, RunTeacher)
    assert (ref.network, ref.run) == ("resnet20+heads", heads.run.id)
    assert ref.sha256 == teacher("resnet20").sha256


def test_heads_see_images_as_their_backbone_does() -> None:
    def other(name: str, data: DataSpec) -> FileTeacher:
        return replace(teacher(name), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))

    ref = by_row(resolve(dih("dih"), other))["dih"].run.teacher
    assert ref is not None
    assert (ref.mean, ref.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_tofd_needs_the_teachers_classifiers() -> None:
    found = by_row(resolve(dih("tofd"), teacher))
    first, taught = found["tofd-teacher"].run, found["tofd"].run
    assert (first.student, first.start, first.teacher, first.seed) == ("resnet20+tofd", None, None, 30)
    assert (taught.student, taught.start, taught.needs) == ("resnet8+tofd", None, (first.id,))
    assert (first.recipe.batch_size, first.recipe.nesterov) == (128, True)
    assert (taught.recipe.batch_size, taught.recipe.nesterov) == (128, False)


def test_takd_needs_an_assistant() -> None:
    found = by_row(resolve(dih("takd"), teacher))
    first, taught = found["kd"].run, found["takd"].run
    assert (first.student, first.seed, first.teacher) == ("resnet14", 30, teacher("resnet20"))
    assert taught.teacher is not None
    assert (taught.teacher.network, taught.student, taught.needs) == ("resnet14", "resnet8", (first.id,))


def test_what_several_need_is_named_once() -> None:
    pairs = ["resnet20:resnet8", "resnet20:resnet14"]
    cells = resolve(dih("dih", "takd", pairs=pairs, seeds=[1, 2], overrides=["assistant=resnet8"]), teacher)
    wanted, first = [c for c in cells if not c.prerequisite], [c for c in cells if c.prerequisite]
    assert len(wanted) == 2 * 2 * 2
    assert sorted((c.row, c.run.student) for c in first) == [("heads", "resnet20+heads"), ("kd", "resnet8")]
    assert {need for c in wanted for need in c.run.needs} == {c.run.id for c in first}
    assert len({c.run.id for c in cells}) == len(cells)


def test_what_is_asked_for_itself_stands_there_once() -> None:
    cells = resolve(dih("kd", "takd", pairs=["resnet20:resnet8", "resnet20:resnet14"], seeds=[30]), teacher)
    assert not any(cell.prerequisite for cell in cells)
    assert [str(cell.pair) for cell in cells if cell.row == "kd"] == ["resnet20:resnet8", "resnet20:resnet14"]


def test_what_a_run_learns_from_is_part_of_its_identity() -> None:
    plain = by_row(resolve(dih("dih"), teacher))
    longer = by_row(resolve(dih("dih", overrides=["weight.heads=2"]), teacher))
    assert plain["heads"].run.id != longer["heads"].run.id
    assert plain["dih"].run.id != longer["dih"].run.id
    again = by_row(resolve(dih("dih", seeds=[7]), teacher))
    assert again["heads"].run.id == plain["heads"].run.id


def test_a_cache_is_not_used_with_a_teacher_that_is_made_first() -> None:
    found = by_row(resolve(dih("takd", teacher_cache="fp32"), teacher))
    assert found["takd"].run.precision == "fp32"
    assert why_uncached(found["takd"].run) == "its teacher is made first"
    assert found["kd"].run.precision == "fp32-cached"


@pytest.mark.parametrize(
    ("pair", "found"),
    [
        (Pair("resnet110", "resnet8"), ["resnet56", "resnet44", "resnet32", "resnet20", "resnet14"]),
        (Pair("resnet20", "resnet8"), ["resnet14"]),
        (Pair("resnet14", "resnet8"), []),
        (Pair("resnet8", "resnet110"), []),
        (Pair("resnet56_a", "resnet20_a"), ["resnet32_a", "resnet44_a"]),
        (Pair("wide_resnet34", "resnet8"), ["resnet20", "resnet14", "resnet32"]),
        (Pair("wide_resnet34", "wide_resnet18"), []),
        (Pair("vgg13", "vgg8"), ["vgg11"]),
        (Pair("vgg13", "ShuffleV1"), []),
        (Pair("resnet32x4", "resnet8x4"), []),
    ],
)
def test_networks_between_two(pair: Pair, found: list[str]) -> None:
    assert sorted(between(pair)) == sorted(found)
    assert between(pair)[:1] == found[:1]


@pytest.mark.parametrize(
    ("pair", "data", "settings", "assistant"),
    [
        ("resnet110:resnet8", "cifar10", [], "resnet14"),
        ("resnet110:resnet8", "cifar100", [], "resnet20"),
        ("resnet110:resnet8", "digits", [], "resnet56"),
        ("resnet44:resnet20", "cifar10", [], "resnet32"),
        ("resnet44:resnet20", "cifar100", [], "resnet32"),
        ("resnet44:resnet8", "cifar100", ["assistant=res32"], "resnet32"),
        ("resnet14:resnet8", "cifar100", ["assistant=vgg8"], "vgg8"),
    ],
)
def test_the_assistant(pair: str, data: str, settings: list[str], assistant: str) -> None:
    found = by_row(resolve(dih("takd", pairs=[pair], data=data, overrides=settings), teacher))
    assert found["kd"].run.student == assistant


def test_without_an_assistant_a_row_is_not_applicable() -> None:
    (cell,) = resolve(dih("takd", pairs=["resnet14:resnet8"]), teacher)
    assert cell.not_applicable is not None
    assert "--set assistant=NETWORK" in cell.not_applicable
    assert cell.run.needs == ()
    assert cell.run.id != resolve(dih("kd", pairs=["resnet14:resnet8"]), teacher)[0].run.id
