"""MHKD: where its heads sit, how often the teacher's are computed, and whom the soft term moves."""

from typing import Any

import pytest
import torch

from kdtable.data import Batch
from kdtable.methods.base import Setting
from kdtable.methods.mhkd import MHKD, mhkd_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.training.build import network_shapes
from tests.asking import aim
from tests.dih_rows import ROWS

RECIPE = Recipe(epochs=1, batch_size=4, lr=0.1, milestones=())
LABELS = torch.tensor([0, 3, 1, 1])
BATCH = Batch(torch.zeros(4, 3, 4, 4), LABELS, torch.arange(4), 1)


def mhkd(student: str = "resnet8", teacher: str = "resnet14", **params: Any) -> MHKD:
    shapes = [network_shapes(name, 4, 32) for name in (student, teacher)]
    all_params = {**ROWS["mhkd"].params, **params}
    torch.manual_seed(2)
    return MHKD(Setting(RECIPE, aim(MHKD, ROWS["mhkd"].terms, all_params), LABELS, 4, *shapes))


def taps(seed: int) -> Outputs:
    draw = torch.Generator().manual_seed(seed)
    maps = [torch.randn(4, c, h, h, generator=draw) for c, h in ((16, 32), (32, 16), (64, 8))]
    return Outputs(torch.randn(4, 4, generator=draw), stages=tuple(maps))


@pytest.mark.parametrize(
    ("groups", "student", "teacher"),
    [("-2,-1", [32, 64], [256, 512]), ("1", [16], [64]), ("1,2,3", [16, 32, 64], [64, 128, 256])],
)
def test_heads_sit_on_the_named_stages_of_each_network(groups: str, student: list[int], teacher: list[int]) -> None:
    method = mhkd("resnet8", "wide_resnet18", groups=groups)
    for heads, channels in ((method.student_heads, student), (method.teacher_heads, teacher)):
        assert [head.conv_1.in_channels for head in heads] == channels


@pytest.mark.parametrize("calls", [1, 2])
def test_calls_of_the_teachers_heads(calls: int) -> None:
    """The second one moves running statistics and nothing else."""
    method = mhkd(head_calls=calls)
    loss = method.loss("mhkd", taps(0), taps(1), BATCH)
    assert [int(head.bn_1.num_batches_tracked) for head in method.teacher_heads] == [calls] * 2
    assert [int(head.bn_1.num_batches_tracked) for head in method.student_heads] == [1, 1]
    other = mhkd(head_calls=3 - calls)
    again = other.loss("mhkd", taps(0), taps(1), BATCH)
    assert torch.equal(loss, again)
    loss.backward()
    again.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(method.parameters(), other.parameters(), strict=True))


def test_the_soft_term_moves_the_teachers_heads_unless_it_is_detached() -> None:
    draw = torch.Generator().manual_seed(0)
    s, t = (torch.randn(4, 5, dtype=torch.float64, generator=draw, requires_grad=True) for _ in "st")
    settings = {"alphas": (0.4,), "beta": 0.5, "temperature": 4.0}

    def gradients(detach: bool) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(mhkd_loss([s], [t], LABELS, **settings, detach=detach), (s, t))

    (s_free, t_free), (s_cut, t_cut) = gradients(False), gradients(True)
    assert torch.equal(s_free, s_cut)
    (alone,) = torch.autograd.grad(torch.nn.functional.cross_entropy(t, LABELS), t)
    torch.testing.assert_close(t_cut, alone)
    assert (t_free - t_cut).abs().max() > 1e-3
    assert torch.autograd.gradcheck(lambda a, b: mhkd_loss([a], [b], LABELS, **settings), (s, t))


def test_detaching_is_a_setting() -> None:
    gradients = []
    for detach in (False, True):
        method = mhkd(detach=detach)
        method.loss("mhkd", taps(0), taps(1), BATCH).backward()
        gradients.append([p.grad.clone() for p in method.teacher_heads.parameters()])
    assert not all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_pair_of_weight_zero_is_left_out() -> None:
    method = mhkd(kd_alpha="0,0.1")
    method.loss("mhkd", taps(0), taps(1), BATCH).backward()
    for heads in (method.student_heads, method.teacher_heads):
        assert all(p.grad is None for p in heads[0].parameters())
        assert all(p.grad is not None for p in heads[1].parameters())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kd_alpha": "1.5"}, "kd_alpha lies in"),
        ({"beta": -0.5}, "beta must not be negative"),
        ({"groups": "0"}, "groups takes numbers of stages"),
        ({"groups": "1.5"}, "groups takes numbers of stages"),
        ({"groups": "last"}, "groups takes a number or a list"),
        ({"head_calls": 3}, "head_calls is one of 1, 2, not"),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(MHKD, {}, {**ROWS["mhkd"].params, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"groups": "2,4"}, "groups names stage 4, and a network has 3"),
        ({"groups": "-4"}, "groups names stage -4, and a network has 3"),
        ({"kd_alpha": "0.1,0.1,0.1"}, "kd_alpha has 3 numbers for 2 places"),
    ],
)
def test_settings_that_do_not_fit_the_networks(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mhkd(**change)


def test_maps_that_are_too_small_for_a_head() -> None:
    assert mhkd("resnet8", "dih_vgg11", groups="1,-2")
    with pytest.raises(ValueError, match="at least 3 x 3, and groups names one of 1"):
        mhkd("resnet8", "dih_vgg11")
