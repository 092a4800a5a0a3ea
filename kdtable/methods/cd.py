"""CD: Zhou et al., "Channel Distillation", arXiv 2006.01683, with its guided KD (GKD).

With g(x) the mean of a map over its positions, and a connector c_i (1x1 convolution without bias, batch norm, ReLU)
for each stage output:

    CD = sum over stages of the mean over samples and channels of ( g(c_i(s_i)) - g(t_i) )^2

GKD is KD of the M samples that the teacher gets right, divided by M, not by the batch size. If M is 0 the released code
divides 0 by 0; here the loss is 0. (That code also mistakes a teacher's probability of exactly 0 for a sample that is
left out. Ours is the divergence: 0 ln 0 = 0.)

The published weights are CE 1, CD 6, and GKD 1 on ImageNet or 0.1 on CIFAR, at T = 1. The early decay (EDT) is a
schedule: ``cd``, ``cd+gkd`` and ``cd+gkd+edt`` differ in terms and schedules only.

Every stage has a connector, even where the channels agree; heights may differ. ``teacher_mode`` = "train" is the
released code: the teacher normalises with the batch's statistics while the student learns. "eval" is what it meant.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.methods.objective import Objective, Params
from kdtable.methods.parts.adaptors import teacher_shapes, unequal_number
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe


def cd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over taps of the mean squared difference of spatial means.

    Args:
        student: connected maps (B, C, H, W), one per tap; H and W may differ from the teacher's.
        teacher: the teacher's maps at the same taps, constants.

    Raises:
        ValueError: the numbers of taps differ.
    """
    means = [(s.mean(dim=(2, 3)), t.mean(dim=(2, 3))) for s, t in zip(student, teacher, strict=True)]
    return torch.stack([F.mse_loss(s, t) for s, t in means]).sum()


def gkd_loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float, count: Tensor | None = None) -> Tensor:
    """KD of the samples that the teacher classifies right, divided by their number; 0 if there are none.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        labels: (B,) int64.
        temperature: T > 0.
        count: M of the whole batch, if these samples are a micro-batch of it.
    """
    log_q = F.log_softmax(s / temperature, dim=1)
    log_p = F.log_softmax(t / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
    right = _is_right(t, labels)
    count = right.sum() if count is None else count
    return temperature**2 * torch.where(right, divergence, 0).sum() / count.clamp(min=1)


def _is_right(t: Tensor, labels: Tensor) -> Tensor:
    return t.argmax(dim=1) == labels


class Connector(nn.Module):
    """Map a student's channels to a teacher's: 1x1 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        return F.relu(self.bn(self.conv(x)))


@dataclass(frozen=True)
class CDParams(Params):
    """Hyper-parameters.

    Attributes:
        gkd_temperature: T of guided KD.
        teacher_mode: "train": the teacher normalises with the batch's statistics; "eval": with its own.
    """

    gkd_temperature: PositiveFloat = 1.0
    teacher_mode: Literal["train", "eval"] = "train"


class CD(Method):
    """Channel means of all stage outputs, and guided KD."""

    hyper = CDParams
    term = "cd"
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})
    summed_terms = frozenset({"gkd"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(CDParams)
        pairs = zip(setting.student_shapes.stages, teacher_shapes(setting).stages, strict=True)
        self.connectors = nn.ModuleList(Connector(s.shape[1], t.shape[1]) for s, t in pairs)
        self._count: Tensor | None = None

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps that cannot be paired."""
        return unequal_number(student_shapes.stages, teacher_shapes.stages)

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """Refuse guided KD of mixed images."""
        if recipe.mixes and "gkd" in objective.terms:
            return "GKD asks whether the teacher is right, and a mixed image has two labels"
        return super().unfit(recipe, objective)

    def main_stage(self) -> Stage:
        """The main stage, with the teacher in ``teacher_mode``."""
        return replace(super().main_stage(), teacher_mode=self.params.teacher_mode)

    def begin_step(self, teacher: Outputs | None, batch: Batch) -> None:
        """Count the samples of the whole batch that the teacher gets right."""
        if teacher is not None and "gkd" in self.setting.objective.terms:
            self._count = self.setting.ranks.all_reduce(_is_right(teacher.logits, batch.labels).sum())

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Batch], Tensor]]:
        """CD and GKD."""
        return {self.term: self.distillation, "gkd": self._guided}

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The channel loss of the connected stage outputs."""
        connected = [connect(s) for connect, s in zip(self.connectors, student.stages, strict=True)]
        return cd_loss(connected, teacher.stages)

    def _guided(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        temperature = self.params.gkd_temperature
        return gkd_loss(student.logits, teacher.logits, batch.labels, temperature, self._count)
