"""SDD: Luo, "Scale Decoupled Distillation", CVPR 2024.

Both networks' last maps are pooled to m x m regions for each m of ``scales``, and the classifiers, with their biases,
make logits of every region. Each region is distilled by a base loss, KD or DKD:

    SDD = mean over images and regions of w * base(s_region, t_region)

w = 2 where the teacher's first class is right in one, and wrong in the other, of the region and the whole map (the
first region); else 1. Scales are 1,2 for pairs of one style, and 1,2,4 for others. The CE is that of the plain logits.

Maps are pooled to 4 x 4 first and those regions pooled again, so that the first region of a map whose size 4 does not
divide is not quite the spatial mean. A smaller map is repeated. The released code replaces a loss that is not finite by
0, which ours does not. Base "nkd-copy" is that repository's copy of NKD, which keeps the label (see ``nkd``).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.dkd import dkd_loss
from kdtable.methods.nkd import nkd_parts
from kdtable.methods.objective import SoftTargetParams
from kdtable.methods.parts.adaptors import given
from kdtable.methods.parts.classifiers import classifier_of, frozen_classifier, without_last
from kdtable.methods.parts.logits import divergence
from kdtable.methods.parts.number_lists import numbers
from kdtable.methods.ranges import TEMPERATURE
from kdtable.methods.soft_targets import compared
from kdtable.models.outputs import Outputs

FINEST = 4


def region_logits(features: Tensor, weight: Tensor, bias: Tensor, scales: tuple[int, ...]) -> Tensor:
    """(B, C, N) logits of all regions, scale by scale, each row by row.

    Args:
        features: (B, D, H, W) last map.
        weight: (C, D) of the classifier.
        bias: (C,) of the classifier.
        scales: regions along each side.
    """
    finest = F.adaptive_avg_pool2d(features, FINEST)
    regions = torch.cat([F.adaptive_avg_pool2d(finest, scale).flatten(2) for scale in scales], dim=2)
    return F.linear(regions.transpose(1, 2), weight, bias).transpose(1, 2)


def region_weights(t: Tensor, labels: Tensor) -> Tensor:
    """(B, N) weight of each region: 2 where the teacher is right in it or in the first region alone, else 1.

    Args:
        t: (B, C, N) the teacher's logits.
        labels: (B,) int64.
    """
    right = t.argmax(dim=1) == labels.unsqueeze(1)
    return 1 + (right != right[:, :1]).to(t.dtype)


@dataclass(frozen=True)
class SDDParams(SoftTargetParams):
    """Hyper-parameters.

    Attributes:
        base: the loss of a region.
        scales: regions along each side, "1,2"; the first one's is the whole map.
        temperature: T of the base loss.
        alpha: DKD's alpha.
        beta: DKD's beta; NKD's gamma.
    """

    base: Literal["kd", "dkd", "nkd-copy"] = "kd"
    scales: str = "1,2"
    temperature: Annotated[PositiveFloat, TEMPERATURE] = 4.0
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 8.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for scales that cannot be pooled from 4 x 4."""
        found = numbers("scales", self.scales)
        if found[0] != 1 or not set(found) <= {1, 2, 4} or len(set(found)) != len(found):
            raise ValueError(f"scales begins with 1 and goes on with 2 or 4, like 1,2,4, not '{self.scales}'")


class SDD(Method):
    """Soft targets of regions of the last map."""

    hyper = SDDParams
    combines_with_kd = False
    term = "sdd"
    unmixed = "it weighs regions by the label's class, and a mixed image has two labels"
    student_features = frozenset({"last"})
    teacher_features = frozenset({"last"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(SDDParams)
        self.scales = tuple(map(int, numbers("scales", self.params.scales)))

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse networks without a last map."""
        return without_last(student_shapes, teacher_shapes)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The weighted mean over images and regions."""
        return self.per_image(student, teacher, batch.labels).mean()

    def per_image(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """(B,) the weighted mean over the regions of each image."""
        s, t = self.regions(student, teacher)
        flat_s, flat_t = (x.transpose(1, 2).flatten(0, 1) for x in (s, t))
        losses = self._base(flat_s, flat_t, labels.repeat_interleave(t.shape[2], output_size=len(flat_t)))
        return (region_weights(t, labels) * losses.view(len(t), -1)).mean(dim=1)

    def regions(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """(B, C, N) logits of the regions of both networks."""
        own: nn.Linear = classifier_of(self.setting.student)
        s = region_logits(given(student.last), own.weight, own.bias, self.scales)
        return s, region_logits(given(teacher.last), *frozen_classifier(self.setting.teacher), self.scales)

    def _base(self, s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """(M,) base losses of logits (M, C)."""
        p = self.params
        s, t = compared(s, t, standardise=p.standardise)
        if p.base == "dkd":
            return dkd_loss(s, t, labels, p.temperature, p.alpha, p.beta)
        if p.base == "nkd-copy":
            target, rest = nkd_parts(s, t, labels, p.temperature, keeps_label=True)
            return target + p.beta * rest
        return divergence(s, t, p.temperature)
