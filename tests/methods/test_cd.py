"""CD and guided KD beyond their golden numbers."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtable import methods
from kdtable.errors import BadRequest
from kdtable.methods.cd import CD, cd_loss, gkd_loss
from kdtable.methods.soft_targets import kd_loss
from kdtable.models.outputs import Outputs
from tests.asking import aim
from tests.methods.golden_sets import batch, built


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(*taps: tuple[int, ...], seed: int = 0) -> Outputs:
    return Outputs(draw(4, 5, seed=seed), stages=tuple(draw(4, *tap, seed=seed + i) for i, tap in enumerate(taps)))


@pytest.mark.parametrize("row", ["cd", "cd+gkd", "cd+gkd+edt", "cd+kd"])
def test_rows_of_the_method(row: str) -> None:
    assert methods.get(row) is CD


def test_guided_kd_is_not_combined_with_kd() -> None:
    with pytest.raises(BadRequest, match=r"unknown method 'cd\+gkd\+kd'"):
        methods.get("cd+gkd+kd")


@given(st.integers(0, 30), st.sampled_from((0.5, 1.0, 4.0)))
def test_guided_kd_is_kd_of_the_samples_that_the_teacher_gets_right(seed: int, temperature: float) -> None:
    s, t = draw(6, 3, seed=seed), draw(6, 3, seed=seed + 100)
    labels = torch.arange(6) % 3
    right = t.argmax(dim=1) == labels
    expected = kd_loss(s[right], t[right], temperature) if right.any() else torch.zeros((), dtype=s.dtype)
    torch.testing.assert_close(gkd_loss(s, t, labels, temperature), expected)


def test_guided_kd_of_shares_adds_up() -> None:
    student, teacher, labels = Outputs(draw(7, 3)), Outputs(draw(7, 3, seed=1)), torch.arange(7) % 3
    shapes = outputs((3, 8, 8))
    method = built("cd+gkd", shapes, shapes, {"ce": 1.0, "cd": 6.0, "gkd": 0.1})
    whole = method.loss("gkd", student, teacher, batch(labels))
    method.begin_step(teacher, batch(labels))
    rows = slice(0, 2), slice(2, 7)
    pairs = [(Outputs(student.logits[r]), Outputs(teacher.logits[r]), batch(labels[r])) for r in rows]
    torch.testing.assert_close(sum(method.loss("gkd", *pair) for pair in pairs), whole)
    assert whole > 0
    assert "gkd" in method.summed_terms


def test_guided_kd_does_not_ask_the_student() -> None:
    t, labels = torch.eye(4, dtype=torch.float64), torch.arange(4)
    s = t.roll(1, dims=1).requires_grad_()
    loss = gkd_loss(s, t, labels, 1.0)
    loss.backward()
    assert loss > 0
    assert (s.grad.abs().sum(dim=1) > 0).all()


def test_gradients() -> None:
    labels, t = torch.tensor([0, 1, 2]), draw(3, 4, seed=1)
    labels[0] = t[0].argmax()
    assert torch.autograd.gradcheck(lambda s: gkd_loss(s, t, labels, 2.0), draw(3, 4).requires_grad_())
    maps, teacher_outputs = draw(2, 3, 4, 4).requires_grad_(), draw(2, 3, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda s: cd_loss([s], [teacher_outputs]), maps)


def test_only_the_means_over_space_are_compared() -> None:
    s, t = draw(2, 3, 4, 4), draw(2, 3, 5, 5, seed=1)
    by_hand = (s.mean(dim=(2, 3)) - t.mean(dim=(2, 3))).square().sum() / 6
    torch.testing.assert_close(cd_loss([s], [t]), by_hand)
    torch.testing.assert_close(cd_loss([s.flip(2), s], [t, t.flip(3)]), 2 * by_hand)


def test_every_stage_has_a_connector_also_where_channels_agree() -> None:
    method: Any = built("cd", outputs((3, 8, 8), (4, 4, 4)), outputs((3, 8, 8), (6, 2, 2)))
    assert [tuple(c.conv.weight.shape) for c in method.connectors] == [(3, 3, 1, 1), (6, 4, 1, 1)]
    assert all(c.conv.bias is None for c in method.connectors)


def test_maps_of_other_heights_are_compared() -> None:
    student, teacher = outputs((3, 8, 8)), outputs((5, 3, 3), seed=9)
    method = built("cd", student, teacher)
    loss = method.loss("cd", student, teacher, batch(torch.zeros(4)))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_networks_with_other_numbers_of_stages_are_refused() -> None:
    one, two = outputs((3, 8, 8)), outputs((3, 8, 8), (3, 4, 4))
    assert CD.inapplicable(one, two) == "the student has 1 feature maps to compare and the teacher 2"
    with pytest.raises(ValueError, match="feature maps"):
        built("cd", one, two)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mode_of_the_teacher(mode: str) -> None:
    shapes = outputs((3, 8, 8))
    assert built("cd", shapes, shapes, teacher_mode=mode).main_stage().teacher_mode == mode
    assert built("cd", shapes, shapes).main_stage().teacher_mode == "train"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"gkd_temperature": 0.0}, "gkd_temperature must be positive"), ({"teacher_mode": "off"}, "one of train, eval")],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(CD, {}, change)
