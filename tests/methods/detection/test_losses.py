"""Losses between detectors: hand-computed values, gradients, and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtable.methods.detection.imitation import adaptor, imitation_loss, levels_imitation_loss
from kdtable.methods.detection.soft_targets import anchors_kd, anchors_softmax_kd, proposals_kd, split_kd
from kdtable.methods.detection.updates import update_epochs, update_iterations
from kdtable.methods.dkd import dkd_parts

seeds = st.integers(0, 1000)


def drawn(seed: int, *shape: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, t = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in "st")
    return s, t


def test_kd_of_one_box_by_hand() -> None:
    """The teacher says 3/4, the student 1/2: 3/4 ln(3/2) + 1/4 ln(1/2)."""
    t, s = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert proposals_kd(s, t).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert proposals_kd(s, t, by_element=True).item() == pytest.approx(proposals_kd(s, t).item() / 2)


def test_binary_kd_by_hand() -> None:
    """One anchor, two classes of which the student agrees on one; the teacher's 3/4 counts it as a positive."""
    t, s = torch.tensor([[[math.log(3.0), 1.0]]]), torch.tensor([[[0.0, 1.0]]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert anchors_kd(s, t).item() == pytest.approx(expected)
    assert anchors_kd(s.repeat(1, 3, 1), t.repeat(1, 3, 1)).item() == pytest.approx(expected)  # three, over three


@given(seeds, st.floats(0.5, 4.0))
def test_equal_networks_have_no_loss(seed: int, temperature: float) -> None:
    s, _ = drawn(seed, 7, 4)
    assert proposals_kd(s, s, temperature).item() == 0
    assert [part.item() for part in split_kd(s, s, torch.arange(7) > 3, temperature)] == [0, 0]
    assert anchors_kd(s[None], s[None], temperature).item() == 0
    assert anchors_softmax_kd(s[None], s[None], torch.ones(1, 7, dtype=torch.bool), temperature).item() == 0


@given(seeds, st.integers(0, 9))
def test_both_sides_of_the_split_make_the_whole(seed: int, count: int) -> None:
    """Weighted by their shares of the boxes, they are the batch mean."""
    s, t = drawn(seed, 9, 5)
    foreground, background = split_kd(s, t, torch.arange(9) < count)
    assert (foreground * count + background * (9 - count)).item() == pytest.approx(9 * proposals_kd(s, t).item())


def test_no_box_gives_zero_and_gradients_of_zero() -> None:
    s, t = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4)
    loss = proposals_kd(s, t) + sum(split_kd(s, t, torch.zeros(0, dtype=torch.bool)))
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None


def test_anchors_that_are_ignored_do_not_count() -> None:
    s, t = drawn(0, 1, 6, 3)
    kept = torch.tensor([[True, False, True, True, False, True]])
    other = s.clone()
    other[~kept] = 50.0
    assert anchors_softmax_kd(s, t, kept).item() == anchors_softmax_kd(other, t, kept).item() > 0
    assert anchors_softmax_kd(s, t, torch.zeros_like(kept)).item() == 0


@given(seeds)
def test_of_one_class_dkd_is_kd(seed: int) -> None:
    """Of background and one class nothing remains beside the target."""
    s, t = drawn(seed, 8, 2)
    tckd, nckd = dkd_parts(s, t, torch.arange(8) % 2, 1.0)
    assert nckd.abs().max().item() == 0
    assert tckd.mean().item() == pytest.approx(proposals_kd(s, t).item())


def test_gradients() -> None:
    s, t = drawn(1, 2, 5, 3, scale=1.0)
    s.requires_grad_()
    kept = torch.arange(10).view(2, 5) % 3 > 0
    assert torch.autograd.gradcheck(lambda x: anchors_kd(x, t, 2.0), (s,))
    assert torch.autograd.gradcheck(lambda x: anchors_softmax_kd(x, t, kept, 2.0), (s,))
    assert torch.autograd.gradcheck(lambda x: split_kd(x[0], t[0], torch.arange(5) > 2), (s,))


def test_imitation_by_hand() -> None:
    """Two of four places, three channels, a difference of 2: 2 * 3 * 4 / (2 * 2)."""
    t = torch.zeros(1, 3, 2, 2)
    mask = torch.tensor([[[True, False], [False, True]]])
    assert imitation_loss(t + 2, t, mask).item() == 6
    assert levels_imitation_loss([t + 2, t], [t, t], [mask, mask]).item() == pytest.approx(6 / 3 / 2)


@given(seeds)
def test_imitation_reads_marked_places_alone(seed: int) -> None:
    s, t = drawn(seed, 2, 3, 4, 4)
    mask = drawn(seed + 1, 2, 4, 4)[0] > 1
    s.requires_grad_()
    imitation_loss(s, t, mask).backward()
    assert s.grad is not None
    assert (s.grad != 0).any(dim=1).equal(mask)


def test_imitation_without_a_marked_place_is_zero() -> None:
    s, t = drawn(0, 1, 2, 3, 3)
    assert imitation_loss(s, t, torch.zeros(1, 3, 3, dtype=torch.bool)).item() == 0


def test_adaptor_starts_near_zero() -> None:
    assert 0 < adaptor(5, 7).weight.abs().max().item() < 2e-4


def test_matching_before_the_first_epoch_that_begins_at_an_iteration_or_later() -> None:
    at = update_iterations(90_000, 5_000, 31_000, 20_000)
    assert at == [0, 5_000, 10_000, 15_000, 31_000, 62_000]
    assert update_epochs(at, 90_000, 12) == {1, 2, 3, 6, 10}  # the epochs begin at multiples of 7500
    assert update_epochs(at, 90_000, 18) == {1, 2, 3, 4, 8, 14}
    assert update_epochs(at, 90_000, 1) == {1, 2}  # of which there is no second
