"""NKD: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023.

With y the label, p = softmax(s) and q = softmax(t), and p_T, q_T the softmaxes at T over the other classes:

    NKD = mean over images of [ -q_y ln p_y + gamma T^2 H(q_T, p_T) ]

H is a cross-entropy, which differs from a divergence by a constant. T = 1, gamma = 1.5 on ImageNet; T = 3, gamma = 3.5
on CIFAR-100. Labels that are scores (mixed images) count as their largest class. With two classes H is 0.

``keeps_label`` is a known error of another repository (SDD, CVPR 2024), from which the NKD numbers on the CRD
benchmark's pairs come: its mask removes nothing, so H is over all classes.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import SoftTargetParams
from kdtable.methods.parts.logits import soft_cross_entropy, without
from kdtable.methods.ranges import TEMPERATURE, WEIGHT
from kdtable.methods.soft_targets import compared
from kdtable.models.outputs import Outputs


def nkd_parts(
    s: Tensor, t: Tensor, labels: Tensor, temperature: float, *, keeps_label: bool = False
) -> tuple[Tensor, Tensor]:
    """The label's part and T^2 times that of the other classes, (B,) both.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        labels: (B,) int64.
        temperature: T > 0 of the second part.
        keeps_label: whether that part is over all classes.
    """
    own = labels.unsqueeze(1)
    target = -(t.softmax(dim=1).gather(1, own) * F.log_softmax(s, dim=1).gather(1, own)).squeeze(1)
    rest = (s, t) if keeps_label else (without(s, labels), without(t, labels))
    return target, temperature**2 * soft_cross_entropy(*rest, temperature)


@dataclass(frozen=True)
class NKDParams(SoftTargetParams):
    """Hyper-parameters.

    Attributes:
        temperature: T of the other classes' part.
        gamma: weight of that part.
        keeps_label: whether that part keeps the label's class: an error of the SDD repository's copy.
    """

    temperature: Annotated[PositiveFloat, TEMPERATURE] = 3.0
    gamma: Annotated[NonNegativeFloat, WEIGHT] = 3.5
    keeps_label: bool = False


class NKD(Method):
    """Soft targets of the label, and normalised ones of the other classes."""

    hyper = NKDParams
    combines_with_kd = False
    term = "nkd"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(NKDParams)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The weighted sum of both parts, averaged over the images."""
        p, labels = self.params, batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(dim=1)
        s, t = compared(student.logits, teacher.logits, standardise=p.standardise)
        target, rest = nkd_parts(s, t, labels, p.temperature, keeps_label=p.keeps_label)
        return (target + p.gamma * rest).mean()
