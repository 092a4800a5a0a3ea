"""DKD: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.

KD's divergence is that between "the label or not" of both networks, plus that among the other classes, which DKD
weighs on its own. With P = softmax(s / T)_y and Q = softmax(t / T)_y, and p, q the softmaxes over the other classes:

    TCKD = T^2 KL( (Q, 1 - Q) || (P, 1 - P) )        NCKD = T^2 KL( q || p )
    DKD  = alpha TCKD + beta NCKD

alpha = 1 and beta = 1 - Q give KD back. beta is 8 at T = 4, and less for some pairs of the CRD benchmark. The term's
weight rises over the first 20 epochs (a schedule). With two classes NCKD is 0.

The released code takes logarithms of probabilities, which in float32 are infinite for logits near 1000.
Ours are finite.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import SoftTargetParams
from kdtable.methods.parts.logits import divergence, margin, two_way_divergence, without
from kdtable.methods.ranges import TEMPERATURE, WEIGHT
from kdtable.methods.soft_targets import compared
from kdtable.models.outputs import Outputs


def dkd_parts(s: Tensor, t: Tensor, labels: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each image, (B,) both.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        labels: (B,) int64.
        temperature: T > 0.
    """
    tckd = two_way_divergence(*(margin(x / temperature, labels) for x in (s, t)))
    return temperature**2 * tckd, divergence(without(s, labels), without(t, labels), temperature)


def dkd_loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float | Tensor, alpha: float, beta: float) -> Tensor:
    """(B,) alpha TCKD + beta NCKD of each image; see :func:`dkd_parts`."""
    tckd, nckd = dkd_parts(s, t, labels, temperature)
    return alpha * tckd + beta * nckd


@dataclass(frozen=True)
class DKDParams(SoftTargetParams):
    """Hyper-parameters.

    Attributes:
        temperature: T.
        alpha: weight of the label's part.
        beta: weight of the other classes' part.
    """

    temperature: Annotated[PositiveFloat, TEMPERATURE] = 4.0
    alpha: Annotated[NonNegativeFloat, WEIGHT] = 1.0
    beta: Annotated[NonNegativeFloat, WEIGHT] = 8.0


class DKD(Method):
    """The label's part of KD, and that of the other classes."""

    hyper = DKDParams
    combines_with_kd = False
    several_teachers = True
    term = "dkd"
    unmixed = "it sets the label's class apart, and a mixed image has two labels"
    weight_range = None

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(DKDParams)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The weighted sum of both parts, averaged over the images."""
        p = self.params
        s, t = compared(student.logits, teacher.logits_at(p.temperature), standardise=p.standardise)
        return dkd_loss(s, t, batch.labels, p.temperature, p.alpha, p.beta).mean()
