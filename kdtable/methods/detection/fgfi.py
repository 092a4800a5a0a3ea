"""FGFI: Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019.

The student imitates the teacher's maps where anchors fit an object. Which places these are is in ``masks``, the sums in
``imitation``. An adaptor, a 3x3 convolution per level, maps the student's channels to the teacher's.

``form`` = "fpn" (the default) is DeFeat's code for FPNs: each box marks places on one level, squared differences are
divided by places and channels, levels are averaged, weight 3 (1 in some of its results). "original" is the authors'
code for one map: a ReLU behind the adaptor, IoU of whole pixels, no division by channels, weight 0.01. ReviewKD's
Table 4 has a row of it, whose code and weight were not published.

The authors' code leaves the term out of its first 400 steps; here it counts from the start.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from kdtable.methods.base import Setting
from kdtable.methods.detection.base import DetectorMethod, shapes_of
from kdtable.methods.detection.imitation import adaptor, imitation_loss, levels_imitation_loss
from kdtable.methods.detection.levels import unpaired_levels
from kdtable.methods.detection.masks import FINEST, level_masks
from kdtable.methods.objective import Params
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs


@dataclass(frozen=True)
class ImitationParams(Params):
    """Hyper-parameters.

    Attributes:
        form: "fpn" for DeFeat's code, "original" for the authors'.
        finest: size in pixels up to whose double a box belongs to the finest level: 56 where its stride is 4.
    """

    form: Literal["fpn", "original"] = "fpn"
    finest: PositiveFloat = FINEST


class FGFI(DetectorMethod):
    """Squared differences of FPN levels at places whose anchors fit an object."""

    hyper = ImitationParams
    term = "fgfi"
    student_features = frozenset({"levels"})
    teacher_features = frozenset({"levels", "anchors"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(ImitationParams)
        student, teacher = shapes_of(setting)
        pairs = zip(student.levels, teacher.levels, strict=True)
        self.adaptors = nn.ModuleList(adaptor(s.shape[1], t.shape[1]) for s, t in pairs)

    @classmethod
    def unfit_detectors(cls, student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
        """Refuse FPNs whose levels differ in number or size; an adaptor maps any width."""
        return unpaired_levels(student, teacher)

    def distilled(self, student: DetectorOutputs, teacher: DetectorOutputs, batch: DetectionBatch) -> Tensor:
        """The imitation loss at the places that the batch's boxes mark."""
        masks = self.masks(teacher.anchors, batch.boxes, teacher.levels)
        adapted = [adapt(level) for adapt, level in zip(self.adaptors, student.levels, strict=True)]
        if self.params.form == "fpn":
            return levels_imitation_loss(adapted, teacher.levels, masks)
        each = zip(adapted, teacher.levels, masks, strict=True)
        return torch.stack([imitation_loss(s.relu(), t, mask) for s, t, mask in each]).mean()

    def masks(self, anchors: Sequence[Tensor], boxes: Sequence[Tensor], levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, H, W) bool of each level, the marked places.

        Args:
            anchors: (H * W * A, 4) of each level.
            boxes: (n, 4) ground truth of each image.
            levels: the maps, of which the sizes are read.
        """
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        return level_masks(anchors, boxes, sizes, self.params.finest, whole_pixels=self.params.form == "original")
