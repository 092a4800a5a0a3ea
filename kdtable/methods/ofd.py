"""OFD: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019.

Taps lie before the activation. A connector (1x1 convolution, batch norm) brings the student's map s of a stage to the
teacher's channels. With the margin m < 0 of each teacher channel, the mean of its negative values (``reducers``):

    q   = max(t, m)
    OFD = 1/B * sum over stages i of L of 2^(i - L) * sum over elements of (s - q)^2 where s > q or t > 0

So a value that the teacher's activation discards need only be low. The weight is 1e-3 on CIFAR, 1e-4 on ImageNet; the
authors advise less for MobileNets. The distance is that of ``mgd``.

As the released code runs it: the teacher's batch norms use the batch's statistics (``teacher_mode`` = "train"). Where
the map is a sum, the margin is that of its branch. A larger teacher's map is average-pooled, as in mdistiller's copy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Norms, Setting, Stage
from kdtable.methods.mgd import partial_loss
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import teacher_shapes, unequal_number
from kdtable.methods.parts.reducers import margins
from kdtable.models.network import Network
from kdtable.models.outputs import Outputs


def ofd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], margin: Sequence[Tensor]) -> Tensor:
    """The sum over stages, with factors that halve from the deepest to the shallowest, divided by the batch.

    Args:
        student: connected maps (B, C, H, W), shallow to deep.
        teacher: the teacher's maps (B, C, H', W'), constants; larger ones are average-pooled.
        margin: (C,) of each stage.

    Raises:
        ValueError: the numbers of stages differ.
    """
    deepest = len(student) - 1
    parts = [
        partial_loss(s, F.adaptive_avg_pool2d(t, (s.shape[2], s.shape[3])), m.view(1, -1, 1, 1))
        / 2 ** (deepest - stage)
        for stage, (s, t, m) in enumerate(zip(student, teacher, margin, strict=True))
    ]
    return torch.stack(parts).sum() / len(student[0])


class Connector(nn.Module):
    """A 1x1 convolution without bias, from a normal of variance 2 / C_out, and a batch norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        connected: Tensor = self.bn(self.conv(x))
        return connected


@dataclass(frozen=True)
class OFDParams(Params):
    """Hyper-parameters.

    Attributes:
        teacher_mode: "train": the teacher normalises with the batch's statistics; "eval": with its own.
    """

    teacher_mode: Literal["train", "eval"] = "train"


class OFD(Method):
    """Partial distances of all stages before their activation."""

    hyper = OFDParams
    term = "ofd"
    student_features = frozenset({"preacts"})
    teacher_features = frozenset({"preacts"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        pairs = list(zip(setting.student_shapes.preacts, teacher_shapes(setting).preacts, strict=True))
        self.count = len(pairs)
        norms = [] if setting.teacher is None else cast(Network, setting.teacher).tap_norms()
        if reason := _without_norms([t for _, t in pairs], norms):
            raise ValueError(reason)
        for stage, ((s, t), norm) in enumerate(zip(pairs, norms, strict=True)):
            assert norm is not None
            self.add_module(f"connector{stage}", Connector(s.shape[1], t.shape[1]))
            self.register_buffer(f"margin{stage}", margins(norm.weight, norm.bias, norm.weight.dtype))

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps that cannot be paired, and maps of the student that are larger than the teacher's."""
        if reason := unequal_number(student_shapes.preacts, teacher_shapes.preacts):
            return reason
        for stage, (s, t) in enumerate(zip(student_shapes.preacts, teacher_shapes.preacts, strict=True)):
            if s.shape[2] > t.shape[2]:
                sizes = f"{s.shape[2]} and {t.shape[2]}"
                return f"the student's map of stage {stage} (from 0) is larger than the teacher's: heights {sizes}"
        return None

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """Refuse teachers whose taps have no batch norm in front, too."""
        reason = cls.inapplicable(student_shapes, teacher_shapes)
        return reason or _without_norms(teacher_shapes.preacts, norms())

    def main_stage(self) -> Stage:
        """The main stage, with the teacher in ``teacher_mode``."""
        return replace(super().main_stage(), teacher_mode=self.setting.params(OFDParams).teacher_mode)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The partial distances of the connected maps."""
        stages = range(self.count)
        connected = [self.get_submodule(f"connector{stage}")(student.preacts[stage]) for stage in stages]
        return ofd_loss(connected, teacher.preacts, [self.get_buffer(f"margin{stage}") for stage in stages])


def _without_norms(preacts: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d | None]) -> str | None:
    """Why the batch norms in front of the teacher's taps give no margins; ``None`` if they do."""
    if len(norms) != len(preacts):
        return "the margins are of the teacher's batch norms, one in front of each stage, and there are none"
    for stage, (tap, norm) in enumerate(zip(preacts, norms, strict=True)):
        if norm is None or norm.num_features != tap.shape[1]:
            return f"the teacher has no batch norm of all {tap.shape[1]} channels in front of stage {stage} (from 0)"
    return None
