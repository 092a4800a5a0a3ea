"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.

With p = softmax(s / T), q = softmax(t / T), (B, C), and r the Pearson correlation:

    inter = T^2 (1 - mean over images  of r(p[i, :], q[i, :]))
    intra = T^2 (1 - mean over classes of r(p[:, j], q[:, j]))
    DIST  = beta inter + gamma intra

The weight is 2, at T = 4 on CIFAR and T = 1 on ImageNet, with beta = gamma = 1. 1e-8 is added to the product of the two
norms. A column that is constant, as all are in a batch of one image, has correlation 0 and so adds T^2 / C.

Not to be confused with DIST+ (TPAMI 2025) or with DIST++, which is KD++'s.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import SoftTargetParams
from kdtable.methods.ranges import TEMPERATURE, WEIGHT
from kdtable.methods.soft_targets import compared
from kdtable.models.outputs import Outputs

EPS = 1e-8


def correlation_distance(p: Tensor, q: Tensor) -> Tensor:
    """1 - the mean of the Pearson correlations of the rows of (N, M) and (N, M)."""
    p, q = (x - x.mean(dim=1, keepdim=True) for x in (p, q))
    correlation: Tensor = (p * q).sum(dim=1) / (p.norm(dim=1) * q.norm(dim=1) + EPS)
    return 1 - correlation.mean()


def dist_parts(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The scalars inter and intra.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        temperature: T > 0.
    """
    p, q = ((x / temperature).softmax(dim=1) for x in (s, t))
    return temperature**2 * correlation_distance(p, q), temperature**2 * correlation_distance(p.T, q.T)


@dataclass(frozen=True)
class DISTParams(SoftTargetParams):
    """Hyper-parameters.

    Attributes:
        temperature: T.
        beta: weight of the correlations over classes.
        gamma: weight of the correlations over images.
    """

    temperature: Annotated[PositiveFloat, TEMPERATURE] = 4.0
    beta: Annotated[NonNegativeFloat, WEIGHT] = 1.0
    gamma: Annotated[NonNegativeFloat, WEIGHT] = 1.0


class DIST(Method):
    """Correlations of probabilities, over classes and over images."""

    hyper = DISTParams
    combines_with_kd = False
    several_teachers = True
    term = "dist"
    weight_range = None
    relates_samples = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(DISTParams)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The weighted sum of both distances."""
        s, t = compared(student.logits, teacher.logits_at(self.params.temperature), standardise=self.params.standardise)
        inter, intra = dist_parts(s, t, self.params.temperature)
        return self.params.beta * inter + self.params.gamma * intra
