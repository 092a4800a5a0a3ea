"""Methods on logits alone stay finite for degenerate logits, and their known identities hold."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtable import methods
from kdtable.data import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.ctkd import reversal, with_gradient_times
from kdtable.methods.dkd import dkd_parts
from kdtable.methods.ikl import wmse_loss
from kdtable.methods.parts.logits import divergence
from kdtable.methods.rld import scd_loss
from kdtable.methods.soft_targets import compared, kd_loss
from kdtable.methods.ttm import ttm_loss, wttm_weights
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim

RECIPE = Recipe(epochs=1, batch_size=8, lr=0.01, milestones=())
#: Term and hyper-parameters by row.
ROWS: Mapping[str, dict[str, Any]] = {
    "kd+ls": {"kd_standardise": True},
    "dkd": {},
    "dkd+ls": {"standardise": True},
    "dist": {},
    "ctkd": {},
    "ctkd+ls": {"standardise": True},
    "ttm": {},
    "wttm": {},
    "nkd": {},
    "wsld": {},
    "rld": {},
    "rld+ls": {"standardise": True},
    "ikl": {},
    "gkl": {"class_prior": True},
}
KINDS = ("zero", "constant", "duplicate", "opposite", "large", "one hot", "ties", "tiny")


def logits(kind: str, batch: int, classes: int, seed: int) -> Tensor:
    noise = torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))
    return {
        "zero": torch.zeros_like(noise),
        "constant": torch.full_like(noise, (0.1, -3.0, 1e4)[seed % 3]),
        "duplicate": noise[:1].expand_as(noise).clone(),
        "opposite": torch.stack([(-1) ** i * noise[0] for i in range(batch)]),
        "large": 1e4 * noise,
        "one hot": 1e4 * torch.eye(classes)[torch.arange(batch) % classes],
        "ties": noise.round(),
        "tiny": 1e-12 * noise,
    }[kind]


def built(row: str, classes: int) -> Method:
    kind, term = methods.get(row), row.removesuffix("+ls")
    shapes = Outputs(torch.zeros(1, classes))
    aimed = aim(kind, {"ce": 1.0, term: 1.0}, ROWS[row])
    return kind(Setting(RECIPE, aimed, torch.arange(classes), classes, shapes, shapes))


@pytest.mark.parametrize("precision", ["float32", "bf16", "inside bf16 autocast"])
@pytest.mark.parametrize("row", ROWS)
@settings(max_examples=40, deadline=None)
@given(
    student=st.sampled_from(KINDS),
    teacher=st.sampled_from((*KINDS, "the student's")),
    batch=st.sampled_from((1, 2, 5)),
    classes=st.sampled_from((2, 3, 10)),
    seed=st.integers(0, 10),
)
def test_degenerate_logits(
    row: str, precision: str, student: str, teacher: str, batch: int, classes: int, seed: int
) -> None:
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    s = logits(student, batch, classes, seed).to(dtype).float().requires_grad_()
    own = teacher == "the student's"
    t = s.detach().clone() if own else logits(teacher, batch, classes, seed + 100).to(dtype).float()
    labels = (torch.arange(batch) + seed) % classes
    method = built(row, classes)
    given_batch = Batch(torch.zeros(batch), labels, torch.arange(batch), 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "inside bf16 autocast"):
        loss = method.loss(row.removesuffix("+ls"), Outputs(s), Outputs(t), given_batch)
    loss.backward()
    assert loss.isfinite(), f"{row} is {loss.item()}"
    assert s.grad is not None
    assert s.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def draw(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 99), st.sampled_from((2, 3, 20)), st.sampled_from((1.0, 4.0)))
def test_dkd_puts_kd_apart(seed: int, classes: int, temperature: float) -> None:
    """KL = TCKD + (1 - Q_y) NCKD."""
    s, t = draw(6, classes, seed=seed), draw(6, classes, seed=seed + 100)
    labels = torch.arange(6) % classes
    tckd, nckd = dkd_parts(s, t, labels, temperature)
    rest = 1 - (t / temperature).softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    assert torch.allclose(tckd + rest * nckd, divergence(s, t, temperature), rtol=1e-9, atol=1e-12)
    if classes == 2:
        assert not nckd.any()


@given(st.integers(0, 99), st.floats(0.1, 50), st.floats(-100, 100))
def test_standardised_kd_sees_no_shift_and_no_scale_of_a_student(seed: int, scale: float, shift: float) -> None:
    s, t = draw(4, 7, seed=seed), draw(4, 7, seed=seed + 100)
    plain, changed = (kd_loss(*compared(x, t, standardise=True), 2.0) for x in (s, scale * s + shift))
    assert torch.allclose(plain, changed, rtol=1e-4, atol=1e-6)
    assert abs(plain - kd_loss(s, t, 2.0)) > 1e-3, "the switch changes the loss"


@given(st.integers(0, 99))
def test_mean_of_divergences_is_kd(seed: int) -> None:
    s, t = draw(5, 6, seed=seed), draw(5, 6, seed=seed + 100)
    assert torch.allclose(divergence(s, t, 4.0).mean(), kd_loss(s, t, 4.0), rtol=1e-12)
    assert torch.allclose(ttm_loss(s, t, 1.0).mean(), kd_loss(s, t, 1.0), rtol=1e-12)
    assert torch.allclose(wttm_weights(t, 1.0), torch.ones(5, dtype=torch.float64))


@given(st.integers(0, 99), st.sampled_from((1.0, 4.0)))
def test_scd_of_a_teacher_that_is_right_is_tckd(seed: int, temperature: float) -> None:
    s, t = draw(5, 6, seed=seed), draw(5, 6, seed=seed + 100)
    labels = t.argmax(dim=1)
    tckd, _ = dkd_parts(s, t, labels, temperature)
    assert torch.allclose(scd_loss(s, t, labels, temperature), tckd, rtol=1e-12)


@given(st.integers(0, 99), st.integers(2, 8))
def test_squares_written_out(seed: int, classes: int) -> None:
    s, t = draw(3, classes, seed=seed), draw(3, classes, seed=seed + 100)
    w, d = draw(3, classes, seed=seed + 200).abs(), t - s
    pairs = (d.unsqueeze(1) - d.unsqueeze(2)).square() * w.unsqueeze(1) * w.unsqueeze(2)
    assert torch.allclose(wmse_loss(s, t, w), pairs.sum(dim=(1, 2)) / 4, rtol=1e-9)


def test_a_reversed_gradient() -> None:
    x = torch.tensor([0.1, -3.0], requires_grad=True)
    y = with_gradient_times(x, -0.5)
    assert torch.equal(y, x)
    (3 * y).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), -1.5))  # type: ignore[arg-type]
    assert [reversal(epoch, 10) for epoch in (5, 10, 99)] == pytest.approx([-0.5, -1.0, -1.0])
    assert reversal(1, 10) == pytest.approx(-0.024471741852423)
