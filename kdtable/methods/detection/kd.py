"""KD on detectors: the teacher judges the boxes that the student proposes.

Faster R-CNN: the student's sampled proposals, ground truth among them, go through the teacher's RoI heads on the
teacher's own maps. Row i of both networks' class logits is then one box; the teacher's RPN is not used. RetinaNet: both
judge the same anchors. The formulas are in ``soft_targets``.

So ReviewKD's authors describe the row "KD" of their Table 4, without temperature, weight and reduction, which no code
of theirs states. Two of three released codes divide by the number of boxes, at T = 1 and weight 1 ("batchmean", the
default). DSIG divides by the K + 1 classes too ("elementmean", weight 3). DeFeat has the two sides apart ("split").
RetinaNet's "softmax" is DSIG's; "binary" has no published code, and neither has its threshold.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import NonNegativeFloat
from torch import Tensor

from kdtable.methods.base import Setting
from kdtable.methods.detection.base import DetectorMethod, given
from kdtable.methods.detection.boxes import other_boxes
from kdtable.methods.detection.soft_targets import anchors_kd, anchors_softmax_kd, proposals_kd, split_kd
from kdtable.methods.objective import Params
from kdtable.methods.ranges import TEMPERATURE, WEIGHT
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs


@dataclass(frozen=True)
class ProposalKDParams(Params):
    """Hyper-parameters.

    Attributes:
        kd_temperature: T.
        reduction: how the divergences of Faster R-CNN's boxes become one number (see ``soft_targets``).
        foreground: weight of the boxes that a label was assigned to, for "split".
        background: weight of the others, for "split".
        anchors: "binary" for two-way divergences of RetinaNet's classes, "softmax" for one softmax over them.
        threshold: probability from which the teacher takes an anchor for an object, for "binary".
    """

    kd_temperature: Annotated[float, Gt(0), TEMPERATURE] = 1.0
    reduction: Literal["batchmean", "elementmean", "split"] = "batchmean"
    foreground: Annotated[NonNegativeFloat, WEIGHT] = 1.0
    background: Annotated[NonNegativeFloat, WEIGHT] = 1.0
    anchors: Literal["binary", "softmax"] = "binary"
    threshold: NonNegativeFloat = 0.5


class KD(DetectorMethod):
    """Soft targets of the boxes that the student proposes, or of its anchors."""

    hyper = ProposalKDParams
    term = "kd"
    student_features = teacher_features = frozenset({"class_logits"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(ProposalKDParams)

    @classmethod
    def unfit_detectors(cls, student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
        """Refuse a RetinaNet and a Faster R-CNN together."""
        return other_boxes(student, teacher)

    def distilled(self, student: DetectorOutputs, teacher: DetectorOutputs, batch: DetectionBatch) -> Tensor:
        """The divergence between both networks' judgements."""
        s, t, labels = given(student.class_logits), given(teacher.class_logits), given(student.labels)
        return self._of_anchors(s, t, labels) if student.dense else self._of_proposals(s, t, labels)

    def _of_anchors(self, s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        p = self.params
        if p.anchors == "softmax":
            return anchors_softmax_kd(s, t, labels >= 0, p.kd_temperature)
        return anchors_kd(s, t, p.kd_temperature, p.threshold)

    def _of_proposals(self, s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        p = self.params
        if p.reduction == "split":
            foreground, background = split_kd(s, t, labels > 0, p.kd_temperature)
            return p.foreground * foreground + p.background * background
        return proposals_kd(s, t, p.kd_temperature, by_element=p.reduction == "elementmean")
