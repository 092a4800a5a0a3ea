"""AB: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries", AAAI 2019.

An initial stage makes the student's neurons active where the teacher's are. Taps lie before the activation. With
margin m = 1, per element:

    (s + m)^2 if t <= 0 and s > -m;   (s - m)^2 if t > 0 and s <= m;   otherwise 0

A tap's loss is the sum over all elements, divided by B, times 0.003. Tap i of n, from 0, weighs 2^(i - n + 1). Where
channels or heights differ, a connector (convolution and batch norm) maps the student's tap to the teacher's.

As the CRD benchmark runs it: the stage "init" of 30 epochs trains connectors and the student's feature layers on this
loss alone, at a constant rate. Then the connectors are discarded and the main stage is cross-entropy; the benchmark's
weight of the method there multiplies a constant 0. In "init" the layers behind the feature maps are in eval mode and
not trained. A wide ResNet's final batch norm, which makes its last tap, is one of them.

Departure: the reference normalises a wide ResNet's sums a second time for these taps. In train mode this updates their
running statistics twice a step, in both stages. Our networks compute that tensor once and update the statistics once,
so that reading a tap never changes how a network is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import (
    Convolution,
    feature_modules,
    set_features_to_train,
    teacher_shapes,
    unequal_number,
    unreachable,
)
from kdtable.methods.ranges import Range
from kdtable.models.outputs import Outputs

SCALE = 0.003
MARGIN = 1.0


def activation_boundary_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], margin: float = MARGIN) -> Tensor:
    """Weighted sum over taps of the neurons' squared distance from the teacher's side of the boundary.

    Args:
        student: (B, C, H, W) before activation, one per tap, shallow to deep.
        teacher: the teacher's of the same shapes, constants.
        margin: how far beyond the boundary a neuron must be.

    Raises:
        ValueError: the numbers of taps differ.
    """
    last = len(student) - 1
    taps = [
        2.0 ** (i - last) * SCALE / len(s) * F.relu(margin + torch.where(t > 0, -s, s)).square().sum()
        for i, (s, t) in enumerate(zip(student, teacher, strict=True))
    ]
    return sum(taps[1:], start=taps[0])


class Connector(nn.Module):
    """One map per tap: identity where channels and height agree, else a convolution with batch norm, without ReLU."""

    def __init__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(
            nn.Identity() if s.shape[1:3] == t.shape[1:3] else Convolution(s, t, relu=False)
            for s, t in zip(student, teacher, strict=True)
        )

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """The student's taps in the teacher's shapes."""
        return [connect(tap) for connect, tap in zip(self.connectors, taps, strict=True)]


@dataclass(frozen=True)
class ABParams(Params):
    """Hyper-parameters.

    Attributes:
        margin: how far beyond the boundary a neuron must be, in units of the activation.
    """

    margin: Annotated[NonNegativeFloat, Range(0.25, 4.0)] = MARGIN


class AB(Method):
    """Activation boundaries, in the initial stage."""

    hyper = ABParams
    term = "ab"
    early_teacher_features = frozenset({"preacts"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.connector = Connector(setting.student_shapes.preacts, teacher_shapes(setting).preacts)

    @classmethod
    def needs_teacher(cls, terms: Mapping[str, float]) -> bool:
        """Always: the initial stage reads it."""
        return True

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps that cannot be paired, and sizes that no connector maps."""
        s, t = student_shapes.preacts, teacher_shapes.preacts
        return unequal_number(s, t) or next(filter(None, map(unreachable, s, t)), None)

    def stages(self) -> tuple[Stage, ...]:
        """The initial stage and the main one."""
        return (self.early_stage("init", "ab", frozenset({"preacts"})), self.main_stage())

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The student's feature layers and the connectors in "init"; then the student."""
        if stage.name == "main":
            return list(student.parameters())
        return [p for module in (*feature_modules(student), self.connector) for p in module.parameters()]

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Put in train mode what is trained, and in eval mode the rest."""
        if stage.name == "main":
            student.train()
        else:
            set_features_to_train(student)
        self.train(stage.name != "main")

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The boundary loss of the connected taps."""
        margin = self.setting.params(ABParams).margin
        return activation_boundary_loss(self.connector(student.preacts), teacher.preacts, margin)
