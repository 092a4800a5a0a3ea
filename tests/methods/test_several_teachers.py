"""Soft targets of several teachers: the mean of their probabilities, at whatever temperature a term reads them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtable import methods
from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.base_terms import CLASSIFIERS
from kdtable.methods.objective import Params
from kdtable.models.outputs import Outputs, log_mean_softmax
from tests.asking import aim
from tests.engine import RECIPE

CLASSES = 5
#: Rows that several networks can teach, each with the term that reads the teacher.
TAUGHT = {"kd": "kd", "dkd": "dkd", "dist": "dist", "ttm": "ttm", "wsld": "wsld"}


def drawn(seed: int, count: int = 2, images: int = 4, scale: float = 3.0) -> tuple[Tensor, list[Tensor], Tensor]:
    """The student's logits, each teacher's, and labels."""
    random = torch.Generator().manual_seed(seed)
    s, *each = (scale * torch.randn(images, CLASSES, generator=random, dtype=torch.float64) for _ in range(count + 1))
    return s, each, torch.arange(images) % CLASSES


def together(each: list[Tensor]) -> Outputs:
    return Outputs(log_mean_softmax(each), each=tuple(each))


def method(row: str, terms: dict[str, float]) -> Method:
    shapes = Outputs(torch.zeros(1, CLASSES))
    setting = Setting(RECIPE, aim(row, terms), torch.arange(8) % CLASSES, CLASSES, shapes, shapes)
    return methods.get(row)(setting)


def loss(row: str, s: Tensor, teacher: Outputs, labels: Tensor) -> Tensor:
    batch = Batch(torch.zeros(len(s), 3, 4, 4), labels, labels, 1)
    return method(row, {TAUGHT[row]: 1.0}).loss(TAUGHT[row], Outputs(s), teacher, batch)


def test_by_hand() -> None:
    """T = 1: the teachers say (1/4, 3/4) and (3/4, 1/4), together (1/2, 1/2), and the student (1/5, 4/5)."""
    s = torch.tensor([[0.0, math.log(4)]], dtype=torch.float64)
    both = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]], dtype=torch.float64)
    each = list(both.split(1))
    found = CLASSIFIERS["kd"].loss(Outputs(s), together(each), None, Params(kd_temperature=1.0))
    assert found.item() == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8), rel=1e-12)
    assert together(each).logits.exp().tolist() == [pytest.approx([0.5, 0.5])]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from((0.5, 1.0, 4.0, 20.0)), st.integers(2, 4))
def test_kd_is_the_divergence_from_the_mean_of_the_softmaxes(seed: int, temperature: float, count: int) -> None:
    """Value and gradient: T^2 / B sum of p ln(p / q), and T / B (q - p), with p the mean at T itself."""
    s, each, _ = drawn(seed, count)
    s.requires_grad_(True)
    found = CLASSIFIERS["kd"].loss(Outputs(s), together(each), None, Params(kd_temperature=temperature))
    (gradient,) = torch.autograd.grad(found, s)
    p = torch.stack([(z / temperature).softmax(dim=1) for z in each]).mean(dim=0)
    q = (s / temperature).softmax(dim=1)
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, temperature / len(s) * (q - p), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", sorted(TAUGHT.keys() - {"wsld"}))  # its weights are of the probabilities at T = 1
def test_a_term_sees_a_teacher_of_these_mean_probabilities(row: str) -> None:
    """The loss is that of one teacher whose softmax at the term's temperature is the mean."""
    s, each, labels = drawn(3, 3)
    s.requires_grad_(True)
    params = method(row, {TAUGHT[row]: 1.0}).setting.objective.params
    temperature = {"kd": 4.0, "ttm": 10.0}.get(row) or params.temperature
    one = Outputs(temperature * torch.stack([(z / temperature).softmax(dim=1) for z in each]).mean(dim=0).log())
    ours, theirs = loss(row, s, together(each), labels), loss(row, s, one, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, s), torch.autograd.grad(theirs, s), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_wsld_weighs_by_the_mean_probability_of_the_label() -> None:
    s, each, labels = drawn(4)
    own = labels.unsqueeze(1)
    mean = torch.stack([z.softmax(dim=1) for z in each]).mean(dim=0).gather(1, own).squeeze(1)
    weights = 1 - torch.exp(s.log_softmax(dim=1).gather(1, own).squeeze(1) / (-mean.log() + 1e-7))
    p = torch.stack([(z / 4).softmax(dim=1) for z in each]).mean(dim=0)
    expected = 16 * (weights * -(p * (s / 4).log_softmax(dim=1)).sum(dim=1)).mean()
    torch.testing.assert_close(loss("wsld", s, together(each), labels), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", TAUGHT)
def test_a_teacher_twice_is_that_teacher(row: str) -> None:
    s, (t, _), labels = drawn(5)
    torch.testing.assert_close(loss(row, s, together([t, t]), labels), loss(row, s, Outputs(t), labels))


def test_one_teachers_logits_are_its_own_at_any_temperature() -> None:
    """The same tensor, so that no result of one teacher moves."""
    t = torch.randn(3, CLASSES)
    assert Outputs(t).logits_at(4.0) is t


def test_a_mean_of_logits_is_another_teacher() -> None:
    """A confident teacher does not outvote the other: probabilities are averaged, and not logits."""
    _, each, _ = drawn(6, scale=8.0)
    mean = torch.stack(each).mean(dim=0).softmax(dim=1)
    assert (together(each).logits.softmax(dim=1) - mean).abs().max() > 0.1


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_finite_for_large_logits(scale: float) -> None:
    """In float32, where one teacher's probability of a class is 0 and the student's, too."""
    each = [scale * torch.eye(CLASSES)[:2], scale * torch.eye(CLASSES)[2:4]]
    s = torch.randn(2, CLASSES, requires_grad=True)
    found = CLASSIFIERS["kd"].loss(Outputs(s), together(each), None, Params())
    found.backward()
    assert found.isfinite()
    assert s.grad is not None
    assert s.grad.isfinite().all()
