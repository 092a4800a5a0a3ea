"""TTM and WTTM: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024.

Only the teacher is softened, by a power gamma of its probabilities q, and there is no T^2:

    q_g = q^gamma / sum of q^gamma = softmax(gamma t)        U = sum of q^gamma
    TTM = mean over images of KL(q_g || softmax(s))         WTTM = the same, with image i weighed by U_i

U is larger where the teacher is less sure. gamma = 1 is KD at T = 1. The repository's examples have weight 45 and gamma
0.1 (TTM, vgg13 to vgg8), and 4 and 0.2 (WTTM beside CRD); the paper tuned both for each pair, in its appendix.

The released code raises a softmax to a power, which underflows in float32; softmax(gamma t) is the same and exact.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import PositiveFloat
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import SoftTargetParams
from kdtable.methods.parts.logits import divergence
from kdtable.methods.ranges import Range
from kdtable.methods.soft_targets import compared
from kdtable.models.outputs import Outputs


def ttm_loss(s: Tensor, t: Tensor, gamma: float) -> Tensor:
    """(B,) KL of the student at T = 1 from the transformed teacher.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        gamma: power > 0 of the teacher's probabilities.
    """
    return divergence(s, gamma * t)


def wttm_weights(t: Tensor, gamma: float) -> Tensor:
    """(B,) U, between 1 and C^(1 - gamma) for gamma <= 1."""
    return ((gamma * t).logsumexp(dim=1) - gamma * t.logsumexp(dim=1)).exp()


@dataclass(frozen=True)
class TTMParams(SoftTargetParams):
    """Hyper-parameters.

    Attributes:
        gamma: power of the teacher's probabilities, 1 / its temperature.
    """

    gamma: Annotated[PositiveFloat, Range(0.05, 1.0)] = 0.1


class TTM(Method):
    """Divergence from a teacher of transformed probabilities."""

    hyper = TTMParams
    combines_with_kd = False
    several_teachers = True
    term = "ttm"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(TTMParams)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The mean over images."""
        s, t = compared(student.logits, teacher.logits_at(1 / self.params.gamma), standardise=self.params.standardise)
        return (self.weights(t) * ttm_loss(s, t, self.params.gamma)).mean()

    def weights(self, t: Tensor) -> Tensor:
        """A weight for each image."""
        return t.new_ones(len(t))


@dataclass(frozen=True)
class WTTMParams(TTMParams):
    """Hyper-parameters.

    Attributes:
        gamma: power of the teacher's probabilities, 1 / its temperature.
    """

    gamma: PositiveFloat = 0.2


class WTTM(TTM):
    """TTM with more weight on images of which the teacher is less sure."""

    hyper = WTTMParams
    term = "wttm"
    several_teachers = False  # U is of one teacher's probabilities at T = 1

    def weights(self, t: Tensor) -> Tensor:
        """U."""
        return wttm_weights(t, self.params.gamma)
