"""MHKD: Wang et al., "Multi-head Knowledge Distillation for Model Compression", arXiv 2012.02911.

Convolutional heads on feature maps of both networks are trained with the student. With h^s_b, h^t_b the logits of
pair b, and kd(u, v; a) = (1 - a) CE(u, y) + a KD_T(v, u):

    L = kd(s, t; a_0) + sum over pairs b with a_b != 0 of [ CE(h^t_b, y) + beta kd(h^s_b, h^t_b; a_b) ]

T = 4, every a 0.1, beta = 0.5, heads on two stages. The terms ce and kd (0.9 and 0.1) are kd(s, t; a_0). The sum is the
method's own term, of weight 1. If the a differ, the released code weighs the final pair by a_1 in place of a_0; set the
weights of ce and kd for that.

As the DIH repository runs it: the teacher's heads are not trained beforehand. The soft term moves them too, towards
the student's heads, unless ``detach`` is true. Each step runs them twice, so that their batch norms' running statistics
move twice; ``head_calls`` = 1 moves them once. (The extra pass has no other effect: its logits are the same.) The
repository's script takes VGG teachers only, with heads on maps that it lists; here ``groups`` names the stages. The KD
function that it imports was never published; we assume that repository's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import teacher_shapes
from kdtable.methods.parts.number_lists import check_fractions, numbers, one_each
from kdtable.methods.ranges import WEIGHT
from kdtable.methods.soft_targets import kd_loss
from kdtable.models.heads import ConvHead
from kdtable.models.outputs import Outputs

#: Least height of a map that a head takes.
SMALLEST: Final = 3


def mhkd_loss(
    s: Sequence[Tensor],
    t: Sequence[Tensor],
    labels: Tensor,
    *,
    alphas: Sequence[float],
    beta: float,
    temperature: float,
    detach: bool = False,
) -> Tensor:
    """Sum over pairs of heads of CE(t) + beta [ (1 - alpha) CE(s) + alpha KD(t, s) ].

    Args:
        s: (B, C) logits of the student's heads.
        t: (B, C) logits of the teacher's heads.
        labels: (B,) int64.
        alphas: one per pair; a pair whose alpha is 0 is left out.
        beta: weight of the student's part.
        temperature: T > 0.
        detach: whether the soft term leaves the teacher's heads alone.

    Raises:
        ValueError: the numbers of heads or alphas differ.
    """
    loss = s[0].new_zeros(())
    for h_s, h_t, alpha in zip(s, t, alphas, strict=True):
        if alpha != 0:
            soft = kd_loss(h_s, h_t.detach() if detach else h_t, temperature)
            objective = (1 - alpha) * F.cross_entropy(h_s, labels) + alpha * soft
            loss = loss + F.cross_entropy(h_t, labels) + beta * objective
    return loss


@dataclass(frozen=True)
class MHKDParams(Params):
    """Hyper-parameters.

    Attributes:
        kd_alpha: weights in [0, 1] of the soft targets: one number, or one per pair of heads.
        beta: weight of the student's part.
        groups: numbers of the stages with heads, counted from 1, or from -1 for the deepest.
        head_calls: how often a step runs the teacher's heads.
        detach: whether the soft term leaves the teacher's heads alone.
    """

    kd_alpha: str = "0.1"
    beta: Annotated[NonNegativeFloat, WEIGHT] = 0.5
    groups: str = "-2,-1"
    head_calls: Literal[1, 2] = 2
    detach: bool = False

    def __post_init__(self) -> None:
        """Raise `ValueError` for an alpha outside [0, 1] and for groups that are no stage numbers."""
        check_fractions("kd_alpha", self.kd_alpha)
        _groups(self.groups)


class MHKD(Method):
    """Soft targets between heads of both networks, beside CE and KD."""

    hyper = MHKDParams
    combines_with_kd = False
    term = "mhkd"
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(MHKDParams)
        self.groups = _groups(self.params.groups)
        self.alphas = one_each("kd_alpha", self.params.kd_alpha, len(self.groups))
        self.student_heads = self._heads(setting.student_shapes)
        self.teacher_heads = self._heads(teacher_shapes(setting))

    def _heads(self, shapes: Outputs) -> nn.ModuleList:
        taps = [_tap(shapes, group) for group in self.groups]
        if (size := min(min(tap.shape[2:]) for tap in taps)) < SMALLEST:
            raise ValueError(f"a head needs maps of at least {SMALLEST} x {SMALLEST}, and groups names one of {size}")
        return nn.ModuleList(ConvHead(tap.shape[1], tap.shape[2], self.setting.num_classes) for tap in taps)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The sum over the pairs of heads."""
        taps = [_tap(teacher, group) for group in self.groups]
        if self.params.head_calls == 2:
            with torch.no_grad():
                _logits(self.teacher_heads, taps)
        return mhkd_loss(
            _logits(self.student_heads, [_tap(student, group) for group in self.groups]),
            _logits(self.teacher_heads, taps),
            batch.labels,
            alphas=self.alphas,
            beta=self.params.beta,
            temperature=self.params.kd_temperature,
            detach=self.params.detach,
        )


def _groups(given: str) -> tuple[int, ...]:
    found = numbers("groups", given)
    if not all(group.is_integer() and group != 0 for group in found):
        raise ValueError(f"groups takes numbers of stages from 1, or from -1 for the deepest, not '{given}'")
    return tuple(map(int, found))


def _tap(outputs: Outputs, group: int) -> Tensor:
    """The output of a stage by its number.

    Raises:
        ValueError: there is no such stage.
    """
    if abs(group) > len(outputs.stages):
        raise ValueError(f"groups names stage {group}, and a network has {len(outputs.stages)}")
    return outputs.stages[group - 1 if group > 0 else group]


def _logits(heads: nn.ModuleList, taps: list[Tensor]) -> list[Tensor]:
    return [head(tap) for head, tap in zip(heads, taps, strict=True)]
