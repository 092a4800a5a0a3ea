"""ReviewKD beyond its golden numbers."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdtable.methods.parts.abf import ABF
from kdtable.methods.reviewkd import ReviewKD, hcl_loss
from kdtable.models.outputs import Outputs
from kdtable.training.build import network_shapes
from tests.asking import aim
from tests.methods.golden_sets import batch, built


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(*taps: tuple[int, int], width: int, seed: int = 0) -> Outputs:
    stages, preacts = (tuple(draw(3, c, h, h, seed=seed + i) for i, (c, h) in enumerate(taps, 10 * k)) for k in (0, 1))
    return Outputs(draw(3, 5), stages=stages, preacts=preacts, embedding=draw(3, width, seed=seed))


STUDENT = outputs((4, 8), (6, 4), width=7)
TEACHER = outputs((3, 16), (5, 4), width=2, seed=50)


@given(st.integers(1, 9), st.floats(-3, 3))
def test_weights_of_levels_add_up_to_one(height: int, gap: float) -> None:
    """A constant gap is the same at every level."""
    t = draw(2, 3, height, height)
    torch.testing.assert_close(hcl_loss([t + gap], [t]), torch.tensor(gap**2, dtype=t.dtype), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("height", "share"), [(1, 1.0), (2, 1 / 1.5), (3, 1 / 1.75), (4, 1 / 1.75), (5, 1 / 1.875)])
def test_levels_below_the_height_are_used(height: int, share: float) -> None:
    """A gap whose sum over the map is 0, and whose pools are, is seen by the full level alone."""
    t = draw(1, 1, height, height)
    s = t + (1.0 if height == 1 else 0.0)
    if height > 1:
        checker = (torch.arange(height)[:, None] + torch.arange(height)) % 2 * 2.0 - 1
        s = t + checker
        levels = [level for level in (4, 2, 1) if level < height]
        pooled = [nn.functional.adaptive_avg_pool2d(checker[None, None], level).square().mean() for level in levels]
        rest = sum(0.5 ** (i + 1) * p for i, p in enumerate(pooled)) * share
    else:
        rest = 0.0
    torch.testing.assert_close(hcl_loss([s], [t]).item(), float(share + rest))


def test_the_loss_by_hand() -> None:
    s, t = draw(2, 3, 2, 2), draw(2, 3, 2, 2, seed=1)
    full, one = (s - t).square().mean(), (s.mean(dim=(2, 3)) - t.mean(dim=(2, 3))).square().mean()
    torch.testing.assert_close(hcl_loss([s, s], [t, t]), 2 * (full + one / 2) / 1.5)
    assert torch.autograd.gradcheck(lambda x: hcl_loss([x], [t]), s.requires_grad_())


def test_every_adaptor_learns_and_the_student_too() -> None:
    student = outputs((4, 8), (6, 4), width=7)
    leaves = [*student.stages, student.embedding]
    for leaf in leaves:
        leaf.requires_grad_()
    method: Any = built("reviewkd", student, TEACHER)
    method.loss("reviewkd", student, TEACHER, batch(torch.zeros(3))).backward()
    assert all(p.grad is not None and p.grad.any() for p in method.fusions.parameters())
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)
    assert all(tap.grad is None for tap in student.preacts)


def test_fused_maps_have_the_teachers_shapes() -> None:
    method: Any = built("reviewkd", STUDENT, TEACHER)
    fused = method.fused([*STUDENT.stages, STUDENT.embedding[:, :, None, None]])
    assert [tuple(x.shape[1:]) for x in fused] == [(3, 16, 16), (5, 4, 4), (2, 1, 1)]


def test_the_deepest_fusion_fuses_nothing() -> None:
    method: Any = built("reviewkd", STUDENT, TEACHER)
    assert [fusion.attention is None for fusion in method.fusions] == [False, False, True]


@pytest.mark.parametrize(("mid", "expected"), [(0, 7), (3, 3)])
def test_the_width_of_what_is_passed_on(mid: int, expected: int) -> None:
    method: Any = built("reviewkd", STUDENT, TEACHER, mid=mid)
    assert {fusion.conv1.out_channels for fusion in method.fusions} == {expected}


# As the released code has them.
@pytest.mark.parametrize(
    ("student", "teacher", "count"),
    [
        ("resnet20", "resnet56", 114_278),
        ("resnet8x4", "resnet32x4", 1_808_774),
        ("wrn_16_2", "wrn_40_2", 453_830),
        ("ShuffleV2", "resnet32x4", 4_195_718),
    ],
)
def test_parameters_of_real_pairs(student: str, teacher: str, count: int) -> None:
    method = built("reviewkd", *(network_shapes(name, 100, 32) for name in (student, teacher)))
    assert sum(p.numel() for p in method.parameters()) == count


def test_how_fusions_start() -> None:
    torch.manual_seed(0)
    fusion = ABF(8, 6, 9, (4, 4), fuse=True)
    for conv in (fusion.conv1, fusion.conv2):
        bound = (3 / conv.weight[0].numel()) ** 0.5
        assert 0.8 * bound < conv.weight.abs().max() <= bound
    assert fusion.attention is not None
    assert fusion.attention.weight.abs().max() <= (1 / 12) ** 0.5


def test_readings_decide_which_taps_are_read() -> None:
    usual = built("reviewkd", STUDENT, TEACHER).main_stage()
    assert (usual.student_features, usual.teacher_features) == ({"stages", "embedding"}, {"preacts", "embedding"})
    assert usual.teacher_mode == "train"
    changes = {"student_taps": "preacts", "teacher_taps": "stages", "teacher_mode": "eval"}
    other = built("reviewkd", STUDENT, TEACHER, **changes).main_stage()
    assert (other.student_features, other.teacher_features) == ({"preacts", "embedding"}, {"stages", "embedding"})
    assert other.teacher_mode == "eval"
    assert usual.teacher_features == ReviewKD.teacher_features


def test_taps_of_a_reading_are_the_ones_compared() -> None:
    losses = []
    for taps in ("stages", "preacts"):
        torch.manual_seed(0)
        method = built("reviewkd", STUDENT, TEACHER, teacher_taps=taps)
        losses.append(method.loss("reviewkd", STUDENT, TEACHER, batch(torch.zeros(3))).item())
    assert losses[0] != losses[1]


def test_networks_with_other_numbers_of_stages_are_refused() -> None:
    more = outputs((4, 8), (6, 4), (6, 2), width=7)
    assert ReviewKD.inapplicable(STUDENT, more) == "the student has 2 feature maps to compare and the teacher 3"
    with pytest.raises(ValueError, match="feature maps"):
        built("reviewkd", STUDENT, more)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"student_taps": "stem"}, "student_taps is one of stages, preacts"),
        ({"teacher_mode": "test"}, "teacher_mode is one of train, eval"),
        ({"mid": -1}, "mid must not be negative"),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(ReviewKD, {}, change)
