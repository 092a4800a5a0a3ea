"""CTKD: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, with its global temperature.

One number theta, trained with the student, sets the temperature of KD, T = 1 + 20 sigmoid(theta). The gradient that
theta gets is multiplied by lambda(e) <= 0, so that it raises the loss that the student lowers:

    lambda(e) = (cos(pi min(e, E) / E) - 1) / 2        in epoch e, counted from 1, with E = 10

The loss is 0.1 CE + 0.9 KD at T. T^2 passes its gradient to theta too. theta starts at 1 and is in the student's
optimiser, weight decay included. With ``base`` = "dkd" the term is DKD at T, of weight 1 beside 1 CE and without ramp.

E does not change with the number of epochs. (The instance-wise variant of the paper is not here.)
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.dkd import DKD, dkd_loss
from kdtable.methods.objective import Objective, SoftTargetParams, as_kind
from kdtable.methods.parts.logits import divergence
from kdtable.methods.ranges import Range
from kdtable.methods.soft_targets import compared
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe


def with_gradient_times(x: Tensor, factor: float) -> Tensor:
    """``x``, whose gradient is multiplied by ``factor``; a negative one reverses it."""
    constant = x.detach()
    return constant + factor * (x - constant)


def reversal(epoch: int, epochs: int) -> float:
    """lambda: from 0 before the first epoch along half a cosine to -1 in epoch ``epochs``, then -1."""
    return (math.cos(math.pi * min(epoch, epochs) / epochs) - 1) / 2


class Temperature(nn.Module):
    """T = start + range sigmoid(theta)."""

    def __init__(self, start: float, span: float) -> None:
        super().__init__()
        self.start, self.span = start, span
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, factor: float) -> Tensor:
        """The temperature (1,), whose gradient reaches theta multiplied by ``factor``."""
        return self.start + self.span * with_gradient_times(self.theta, factor).sigmoid()


@dataclass(frozen=True)
class CTKDParams(SoftTargetParams):
    """Hyper-parameters.

    Attributes:
        lowest: temperature that theta of minus infinity would give.
        span: how much higher that of infinity would be.
        reversal_epochs: E, the epochs until theta's gradient is reversed in full.
        base: "kd", or "dkd".
        dkd_alpha: DKD's alpha.
        dkd_beta: DKD's beta.
    """

    lowest: Annotated[PositiveFloat, Range(0.5, 4.0)] = 1.0
    span: Annotated[NonNegativeFloat, Range(5.0, 40.0)] = 20.0
    reversal_epochs: PositiveInt = 10
    base: Literal["kd", "dkd"] = "kd"
    dkd_alpha: NonNegativeFloat = 1.0
    dkd_beta: NonNegativeFloat = 8.0


class CTKD(Method):
    """Soft targets at a temperature that learns to make them harder."""

    hyper = CTKDParams
    combines_with_kd = False
    term = "ctkd"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(CTKDParams)
        self.temperature = Temperature(self.params.lowest, self.params.span)

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """Refuse mixed images where the base is DKD, as that does."""
        if recipe.mixes and as_kind(objective.params, CTKDParams).base == "dkd":
            return DKD.unmixed
        return super().unfit(recipe, objective)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """KD or DKD at the learnt temperature, averaged over the images."""
        p = self.params
        temperature = self.temperature(reversal(batch.epoch, p.reversal_epochs))
        s, t = compared(student.logits, teacher.logits, standardise=p.standardise)
        if p.base == "dkd":
            return dkd_loss(s, t, batch.labels, temperature, p.dkd_alpha, p.dkd_beta).mean()
        return divergence(s, t, temperature).mean()
