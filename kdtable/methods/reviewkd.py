"""ReviewKD: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021.

Taps are the stages, then the embedding as a 1 x 1 map. From the deepest tap to the shallowest, a fusion (``abf``)
combines the student's map with the residual of the deeper fusions into a map of the teacher's shape. Each pair is
compared at several levels (HCL). With D(l) the mean squared difference after average pooling to l x l:

    HCL = ( D(full) + sum over l of w_l D(l) ) / ( 1 + sum over l of w_l )

with those l of 4, 2, 1 that are below the map's height. w is 1/2 for the first l used, then 1/4 and 1/8. Pairs are
summed. ``mid``, the channels of the residual, is min(512, channels of the student's deepest tap) on CIFAR (``mid`` = 0)
and given per pair on ImageNet. The warm-up of the weight is the term's schedule.

As the released code runs it on CIFAR: the student's stages after their activation (``student_taps`` = "stages") learn
from the teacher's before it (``teacher_taps`` = "preacts"), and the teacher's batch norms use the batch's statistics
(``teacher_mode`` = "train"). Its authors say that they paid no attention to the choice of taps. On ImageNet its ResNets
compare maps after the activation on both sides, with the teacher in eval mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.methods.objective import Params
from kdtable.methods.parts.abf import ABF
from kdtable.methods.parts.adaptors import given, teacher_shapes, unequal_number
from kdtable.models.outputs import Outputs

LEVELS: Final = (4, 2, 1)
#: Most channels of the residual between fusions, if ``mid`` is 0.
MOST_CHANNELS: Final = 512


def hcl_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over taps of the hierarchical context loss.

    Args:
        student: fused maps (B, C, H, W), one per tap.
        teacher: the teacher's maps of the same shapes, constants.

    Raises:
        ValueError: the numbers of taps differ.
    """
    return torch.stack([_levels(s, t) for s, t in zip(student, teacher, strict=True)]).sum()


def _levels(s: Tensor, t: Tensor) -> Tensor:
    used = [level for level in LEVELS if level < s.shape[2]]
    weights = [0.5**i for i in range(1, len(used) + 1)]  # a level that is left out uses up no weight
    loss = F.mse_loss(s, t)
    for level, weight in zip(used, weights, strict=True):
        loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(s, level), F.adaptive_avg_pool2d(t, level))
    return loss / (1 + sum(weights))


@dataclass(frozen=True)
class ReviewKDParams(Params):
    """Hyper-parameters.

    Attributes:
        mid: channels of the residual; 0 for the CIFAR rule.
        student_taps: the student's maps after their activation ("stages") or before it ("preacts").
        teacher_taps: the same of the teacher.
        teacher_mode: "train": the teacher normalises with the batch's statistics; "eval": with its own.
    """

    mid: NonNegativeInt = 0
    student_taps: Literal["stages", "preacts"] = "stages"
    teacher_taps: Literal["preacts", "stages"] = "preacts"
    teacher_mode: Literal["train", "eval"] = "train"


class ReviewKD(Method):
    """Hierarchical context loss of fused stages and embedding."""

    hyper = ReviewKDParams
    term = "reviewkd"
    # The defaults'; main_stage asks for what the run sets.
    student_features = frozenset({"stages", "embedding"})
    teacher_features = frozenset({"preacts", "embedding"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(ReviewKDParams)
        student, teacher = self._pair(setting.student_shapes, teacher_shapes(setting))
        mid = self.params.mid or min(MOST_CHANNELS, student[-1].shape[1])
        deepest = len(student) - 1
        self.fusions = nn.ModuleList(
            ABF(s.shape[1], mid, t.shape[1], (t.shape[2], t.shape[3]), fuse=i < deepest)
            for i, (s, t) in enumerate(zip(student, teacher, strict=True))
        )

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps that cannot be paired; a fusion maps any shape."""
        return unequal_number(student_shapes.stages, teacher_shapes.stages)

    def main_stage(self) -> Stage:
        """The main stage, with the taps and the teacher's mode of the hyper-parameters."""
        return replace(
            super().main_stage(),
            student_features=frozenset({self.params.student_taps, "embedding"}),
            teacher_features=frozenset({self.params.teacher_taps, "embedding"}),
            teacher_mode=self.params.teacher_mode,
        )

    def _pair(self, student: Outputs, teacher: Outputs) -> tuple[list[Tensor], list[Tensor]]:
        return _taps(student, self.params.student_taps), _taps(teacher, self.params.teacher_taps)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The hierarchical context loss of the fused taps."""
        s, t = self._pair(student, teacher)
        return hcl_loss(self.fused(s), t)

    def fused(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """The student's taps in the teacher's shapes, shallow to deep."""
        maps: list[Tensor] = []
        residual: Tensor | None = None
        for i in reversed(range(len(taps))):
            fused, residual = self.fusions[i](taps[i], residual)
            maps.append(fused)
        return maps[::-1]


def _taps(outputs: Outputs, which: str) -> list[Tensor]:
    """The maps of the stages, and the embedding as an (N, C, 1, 1) map."""
    stages: tuple[Tensor, ...] = getattr(outputs, which)
    return [*stages, given(outputs.embedding)[:, :, None, None]]
