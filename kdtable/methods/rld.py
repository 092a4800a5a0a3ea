"""RLD: Sun et al., "Knowledge Distillation with Refined Logits", ICCV 2025.

Labels correct the teacher, in two parts. With top(t) the largest of the teacher's probabilities at Ta:

    SCD = Ta^2 KL( (top(t), 1 - top(t)) || (softmax(s / Ta)_y, the rest) )
    MCD = T^2 KL between the softmaxes at T over the classes that the teacher rates below the label
    RLD = mean over images of alpha SCD + beta MCD

So the student is as sure of the label as the teacher is of its own first class, and learns the relations of those
classes only of which the teacher is right that they lie below the label. Ties with the label are left out. If none or
one class is left, MCD is 0. If the label is the teacher's first class, SCD is DKD's TCKD.

alpha = 1, beta = 8 and Ta = T = 4 are the README's command; the paper's text has beta = 4 (reading "paper"). The term's
weight rises over the first 20 epochs (a schedule).
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import SoftTargetParams
from kdtable.methods.parts.logits import divergence, margin, two_way_divergence
from kdtable.methods.ranges import TEMPERATURE, WEIGHT
from kdtable.methods.soft_targets import compared
from kdtable.models.outputs import Outputs

#: Logit of a class that is left out: finite, so that leaving out all of them gives equal distributions.
LEFT_OUT = -1e9


def scd_loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """(B,) SCD of each image.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        labels: (B,) int64.
        temperature: Ta > 0.
    """
    of_student, of_teacher = margin(s / temperature, labels), margin(t / temperature, t.argmax(dim=1))
    return temperature**2 * two_way_divergence(of_student, of_teacher)


def masked(t: Tensor, labels: Tensor) -> Tensor:
    """(B, C) which classes MCD leaves out: those that the teacher does not rate below the label."""
    return t >= t.gather(1, labels.unsqueeze(1))


def mcd_loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """(B,) MCD of each image; arguments as of :func:`scd_loss`."""
    mask = masked(t, labels)
    left_s, left_t = ((x / temperature).masked_fill(mask, LEFT_OUT) for x in (s, t))
    return temperature**2 * divergence(left_s, left_t)


@dataclass(frozen=True)
class RLDParams(SoftTargetParams):
    """Hyper-parameters.

    Attributes:
        temperature: T of MCD.
        top_temperature: Ta of SCD.
        alpha: weight of SCD.
        beta: weight of MCD.
    """

    temperature: Annotated[PositiveFloat, TEMPERATURE] = 4.0
    top_temperature: Annotated[PositiveFloat, TEMPERATURE] = 4.0
    alpha: Annotated[NonNegativeFloat, WEIGHT] = 1.0
    beta: Annotated[NonNegativeFloat, WEIGHT] = 8.0


class RLD(Method):
    """Soft targets that the labels correct."""

    hyper = RLDParams
    combines_with_kd = False
    term = "rld"
    unmixed = "it sets the label's class apart, and a mixed image has two labels"
    weight_range = None

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(RLDParams)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The weighted sum of both parts, averaged over the images."""
        p = self.params
        s, t = compared(student.logits, teacher.logits, standardise=p.standardise)
        scd = scd_loss(s, t, batch.labels, p.top_temperature)
        return (p.alpha * scd + p.beta * mcd_loss(s, t, batch.labels, p.temperature)).mean()
