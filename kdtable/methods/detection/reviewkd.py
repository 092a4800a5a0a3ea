"""ReviewKD on detectors: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021.

Taps are the FPN's outputs, the extra coarse levels too: P2 to P6 of Faster R-CNN, P3 to P7 of RetinaNet. They are fused
from coarse to fine, and compared level by level, as in classification (`kdtable.methods.reviewkd`). Residual and
output are as wide as the FPN. The fusions' batch norms use the batch's statistics, though those of detectors are often
frozen. There is no warm-up, and the teacher is in eval mode.

The weight depends on the pair: 1.0 for R101 to R50, 1.2 for R101 to R18, 2.0 for R50 to MobileNetV2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import NonNegativeInt
from torch import Tensor, nn

from kdtable.methods.base import Setting
from kdtable.methods.detection.base import DetectorMethod, shapes_of
from kdtable.methods.detection.levels import unpaired_levels
from kdtable.methods.objective import Params
from kdtable.methods.parts.abf import ABF
from kdtable.methods.reviewkd import hcl_loss
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs


@dataclass(frozen=True)
class LevelReviewParams(Params):
    """Hyper-parameters.

    Attributes:
        mid: channels of the residual; 0 for those of the teacher's FPN.
    """

    mid: NonNegativeInt = 0


class ReviewKD(DetectorMethod):
    """Hierarchical context loss of fused FPN levels."""

    hyper = LevelReviewParams
    term = "reviewkd"
    student_features = teacher_features = frozenset({"levels"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        student, teacher = shapes_of(setting)
        pairs = [(s.shape[1], t.shape[1]) for s, t in zip(student.levels, teacher.levels, strict=True)]
        mid, coarsest = setting.params(LevelReviewParams).mid, len(pairs) - 1
        self.fusions = nn.ModuleList(
            ABF(s, mid or t, t, None, fuse=level < coarsest) for level, (s, t) in enumerate(pairs)
        )

    @classmethod
    def unfit_detectors(cls, student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
        """Refuse FPNs whose levels differ in number or size; a fusion maps any width."""
        return unpaired_levels(student, teacher)

    def distilled(self, student: DetectorOutputs, teacher: DetectorOutputs, batch: DetectionBatch) -> Tensor:
        """The hierarchical context loss of the fused levels."""
        return hcl_loss(self.fused(student.levels), teacher.levels)

    def fused(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The student's levels in the teacher's width, fine to coarse."""
        maps: list[Tensor] = []
        residual: Tensor | None = None
        for level in reversed(range(len(levels))):
            fused, residual = self.fusions[level](levels[level], residual)
            maps.append(fused)
        return maps[::-1]
