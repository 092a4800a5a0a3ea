"""WSLD: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
ICLR 2021.

With H the cross-entropy of softmax(s / T) under softmax(t / T), and both networks' losses at T = 1, as constants:

    w    = 1 - exp( -CE(s, y) / (CE(t, y) + 1e-7) )
    WSLD = T^2 * mean over images of w H

A student that already knows an image better than its teacher learns little from it. T = 2 and weight 2.5 on ImageNet;
T = 4 and weight 2.25 on CIFAR-100. Where both losses are exactly 0, w is 0. Standardised logits are compared, but not
weighed by.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import SoftTargetParams
from kdtable.methods.parts.logits import soft_cross_entropy
from kdtable.methods.ranges import TEMPERATURE
from kdtable.methods.soft_targets import compared
from kdtable.models.outputs import Outputs

RATIO_EPS = 1e-7


@torch.no_grad()
def wsld_weights(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """(B,) w in [0, 1].

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits.
        labels: (B,) int64.
    """
    of_student, of_teacher = (F.cross_entropy(x, labels, reduction="none") for x in (s, t))
    return -torch.expm1(-of_student / (of_teacher + RATIO_EPS))


@dataclass(frozen=True)
class WSLDParams(SoftTargetParams):
    """Hyper-parameters.

    Attributes:
        temperature: T.
    """

    temperature: Annotated[PositiveFloat, TEMPERATURE] = 4.0


class WSLD(Method):
    """Soft targets, weighed image by image."""

    hyper = WSLDParams
    combines_with_kd = False
    several_teachers = True
    term = "wsld"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(WSLDParams)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The mean over images."""
        temperature = self.params.temperature
        weights = wsld_weights(student.logits, teacher.logits, batch.labels)
        s, t = compared(student.logits, teacher.logits_at(temperature), standardise=self.params.standardise)
        return temperature**2 * (weights * soft_cross_entropy(s, t, temperature)).mean()
