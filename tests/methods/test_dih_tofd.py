"""TOFD: which classifiers are paired in which reading, links, the orthogonal term, and the temperature."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdtable import methods, models
from kdtable.data import Batch
from kdtable.methods.base import Setting
from kdtable.methods.tofd import TOFD, deepest_first, orthogonal_loss
from kdtable.recipes.recipe import Recipe
from kdtable.training.build import network_shapes, output_shapes
from tests import engine
from tests.asking import aim
from tests.dih_rows import ROWS

RECIPE = Recipe(epochs=1, batch_size=4, lr=0.1, milestones=())


def batch(epoch: int = 1) -> Batch:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64, generator=draw)
    return Batch(images, torch.tensor([0, 3, 1, 1]), torch.arange(4), epoch)


def tofd(student: Any, teacher: Any, **params: Any) -> TOFD:
    shapes = [output_shapes(network, 32) for network in (student, teacher)]
    all_params = {**ROWS["tofd"].params, **params}
    torch.manual_seed(3)
    return TOFD(Setting(RECIPE, aim(TOFD, ROWS["tofd"].terms, all_params), torch.zeros(4), 4, *shapes)).double()


def network(name: str) -> Any:
    torch.manual_seed(1)
    return models.build(name, 4).double().eval()


def loss(student: Any, teacher: Any, epoch: int = 1, **params: Any) -> torch.Tensor:
    with torch.no_grad():
        teacher_outputs = teacher(batch().images)
    method = tofd(student, teacher, **params)
    outputs = student(batch().images)
    return method.loss("tofd", outputs, teacher_outputs, batch(epoch)) + method.loss(
        "ce", outputs, teacher_outputs, batch(epoch)
    )


def untouched(student: Any) -> set[str]:
    """Children of the branches that no gradient reached."""
    return {
        ".".join(name.split(".")[:3])
        for name, parameter in student.named_parameters()
        if name.startswith("branches.") and parameter.grad is None
    }


@pytest.mark.parametrize(
    ("name", "pairing", "left_out"),
    [
        ("resnet8+tofd", "shifted", {"branches.0.fc"}),  # the shallow classifier
        ("resnet8+tofd", "aligned", {"branches.2.fc"}),  # the main classifier's double
        ("wide_resnet18+tofd", "shifted", set()),
        ("wide_resnet18+tofd", "aligned", set()),
        ("wrn_28_2+tofd", "shifted", set()),
    ],
)
def test_classifiers_that_learn(name: str, pairing: str, left_out: set[str]) -> None:
    student = network(name)
    loss(student, network(name), pairing=pairing).backward()
    assert untouched(student) == left_out
    assert all(p.grad is not None for p in student.backbone.parameters())


def test_wide_networks_are_aligned_in_both_readings() -> None:
    student, teacher = network("wide_resnet18+tofd"), network("wide_resnet18+tofd")
    assert torch.equal(loss(student, teacher), loss(student, teacher, pairing="aligned"))


def test_pairs_of_both_readings() -> None:
    out = network("resnet8+tofd")(batch().images)
    (shallow, middle, deep), (f_shallow, f_middle, f_deep) = zip(*out.branches, strict=True)
    for pairing, expected in (
        ("shifted", (out.logits, deep, middle, shallow)),
        ("aligned", (out.logits, middle, shallow)),
    ):
        found = deepest_first(out, 3, pairing)
        assert len(found.logits) == len(expected)
        assert all(a is b for a, b in zip(found.logits, expected, strict=True))
        assert all(a is b for a, b in zip(found.features, (f_deep, f_middle, f_shallow), strict=True))
    torch.testing.assert_close(out.embedding, f_deep)


def test_a_wider_teacher_is_linked_to() -> None:
    student, teacher = network("resnet8+tofd"), network("wide_resnet18+tofd")
    assert [tuple(w.shape) for w in tofd(student, teacher).link.parameters()] == [(512, 64)] * 3
    loss(student, teacher).backward()
    assert TOFD.inapplicable(*(network_shapes(n, 4, 32) for n in ("wide_resnet18+tofd", "wrn_28_2+tofd")))


@pytest.mark.parametrize(("reading", "same", "wider"), [("all", 3, 3), ("resized", 0, 3), ("none", 0, 0)])
def test_links_that_are_kept_orthogonal(reading: str, same: int, wider: int) -> None:
    student = network("resnet8+tofd")
    for name, count in (("resnet14+tofd", same), ("wide_resnet18+tofd", wider)):
        teacher = network(name)
        links = list(tofd(student, teacher).link.parameters())
        added = loss(student, teacher, orthogonal=reading) - loss(student, teacher, orthogonal="none")
        torch.testing.assert_close(
            added, 0.03 * sum((orthogonal_loss(w) for w in links[:count]), torch.zeros(())).double()
        )


def test_an_orthogonal_link_costs_nothing() -> None:
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert orthogonal_loss(q) < 1e-13
    rows = orthogonal_loss(q[:4])  # W^T W cannot be the identity: it has rank 4 of 6
    torch.testing.assert_close(rows, torch.tensor(2.0, dtype=torch.float64).sqrt())
    assert torch.autograd.gradcheck(orthogonal_loss, torch.randn(3, 5, dtype=torch.float64).requires_grad_())


def test_the_temperature_rises_with_the_epoch() -> None:
    student, teacher = network("resnet8+tofd"), network("resnet14+tofd")
    assert loss(student, teacher, 1) != loss(student, teacher, 200)
    assert torch.equal(
        loss(student, teacher, 1, start_temperature=0.0), loss(student, teacher, 9, start_temperature=0.0)
    )
    torch.testing.assert_close(loss(student, teacher, 2), loss(student, teacher, 1, start_temperature=6.0))


def test_who_can_be_a_student_or_a_teacher() -> None:
    plain, with_branches = (network_shapes(name, 4, 32) for name in ("resnet8", "resnet8+tofd"))
    assert TOFD.inapplicable(with_branches, with_branches) is None
    assert TOFD.inapplicable(plain, with_branches) == "the student has no branches"
    assert TOFD.inapplicable(with_branches, plain) == "the teacher has no branches"
    fewer = replace(with_branches, branches=with_branches.branches[1:])
    assert TOFD.inapplicable(with_branches, fewer) == "the teacher has fewer branches than the student"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pairing": "paper"}, "pairing is one of shifted, aligned"),
        ({"orthogonal": "some"}, "orthogonal is one of all, resized, none"),
        ({"teacher_mode": "test"}, "teacher_mode is one of train, eval"),
        ({"feature_weight": -1.0}, "feature_weight must not be negative"),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(TOFD, {}, {**ROWS["tofd"].params, **change})


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_teachers_mode_is_the_stages(mode: str) -> None:
    task, teacher = engine.task(), engine.teacher("resnet14+tofd")
    student = engine.build_student("resnet8+tofd", task.images.spec, 1)
    assert engine.method("tofd", task, student, teacher, teacher_mode=mode).stages()[-1].teacher_mode == mode
    assert methods.get("kd").main_stage(engine.member("kd", task, teacher).method).teacher_mode == "eval"
