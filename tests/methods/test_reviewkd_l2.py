"""CE+L2 and PAD-L2 beyond their golden numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kdtable.methods.base import Term
from kdtable.methods.cse_l2 import CSEL2, l2_loss
from kdtable.methods.pad_l2 import PADL2, pad_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim
from tests.methods.golden_sets import batch, built


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(width: int, seed: int = 0) -> Outputs:
    return Outputs(draw(4, 3, seed=seed), embedding=draw(4, width, seed=seed + 1))


def pad(**extra: Any) -> Any:
    recipe = Recipe(epochs=30, batch_size=4, lr=0.002, milestones=(25,), weight_decay=1e-4, lr_factor=0.5)
    return built("pad-l2", outputs(6), outputs(6, seed=9), recipe=recipe, stage_epochs={"l2": 90}, **extra)


def test_l2_is_a_mean_over_channels_as_well() -> None:
    s, t = draw(4, 6), draw(4, 6, seed=1)
    torch.testing.assert_close(l2_loss(s, t), (s - t).square().sum() / 24)


def test_a_variance_of_one_gives_l2() -> None:
    s, t = draw(4, 6), draw(4, 6, seed=1)
    torch.testing.assert_close(pad_loss(s, t, torch.zeros_like(s)), l2_loss(s, t) / (1 + 1e-6))


def test_the_best_variance_is_the_squared_gap() -> None:
    s, t = draw(4, 6), draw(4, 6, seed=1)
    v = (s - t).square().log().requires_grad_()
    pad_loss(s, t, v).backward()
    assert v.grad.abs().max() < 1e-3
    assert pad_loss(s, t, v) < pad_loss(s, t, v + 0.1)
    assert pad_loss(s, t, v) < pad_loss(s, t, v - 0.1)


def test_the_gradient_reaches_the_student_through_the_variance() -> None:
    """Where student and teacher agree, nothing but the variance moves the student."""
    s = draw(4, 6).requires_grad_()
    student, teacher = Outputs(draw(4, 3), embedding=s), Outputs(draw(4, 3), embedding=s.detach())
    pad().loss("pad", student, teacher, batch(torch.zeros(4))).backward()
    assert s.grad.abs().max() > 0


def test_stages_of_pad() -> None:
    first, main = pad().stages()
    assert (first.name, first.terms) == ("l2", (Term("ce", 1.0), Term("l2", 15.0)))
    assert (first.recipe.epochs, first.recipe.milestones) == (90, (30, 60))
    rates = [first.recipe.lr_at(epoch) for epoch in (1, 30, 31, 60, 61, 90)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.002])
    assert first.recipe.weight_decay == main.recipe.weight_decay == 1e-4
    assert main.terms == (Term("ce", 1.0), Term("pad", 1.0))
    assert (main.recipe.epochs, main.recipe.lr_at(1)) == (30, 0.002)
    assert first.teacher_features == main.teacher_features == {"embedding"}


def test_the_first_stage_is_what_cse_l2_does() -> None:
    student, teacher = outputs(6), outputs(6, seed=9)
    method = built("cse-l2", student, teacher)
    arguments = (student, teacher, batch(torch.zeros(4)))
    assert torch.equal(pad().loss("l2", *arguments), method.loss("l2", *arguments))
    assert pad(first_lr=0.05, l2_weight=3.0).stages()[0].terms[1].weight == 3.0
    assert pad(first_lr=0.05).stages()[0].recipe.lr == 0.05
    assert pad(first_lr=0.0).stages()[0].recipe.lr == pad().stages()[1].recipe.lr


def test_the_first_stage_leaves_the_variance_alone() -> None:
    method = pad()
    method.loss("l2", outputs(6), outputs(6, seed=9), batch(torch.zeros(4)))
    assert all(p.grad is None for p in method.variance.parameters())
    assert method.variance[1].num_batches_tracked == 0


@pytest.mark.parametrize("kind", [CSEL2, PADL2])
def test_embeddings_of_other_widths_are_refused(kind: type[CSEL2] | type[PADL2]) -> None:
    reason = "it compares embeddings of equal width, and the student's has 6 channels, the teacher's 8"
    assert kind.inapplicable(outputs(6), outputs(8)) == reason
    assert kind.inapplicable(outputs(6), outputs(6)) is None
    with pytest.raises(ValueError, match="equal width"):
        built("cse-l2", outputs(6), outputs(8))


def test_pad_always_needs_a_teacher() -> None:
    assert PADL2.needs_teacher({"ce": 1.0})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"first_lr": -0.1}, "first_lr must not be negative"), ({"l2_weight": -1.0}, "l2_weight must not be negative")],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(PADL2, {}, change)
