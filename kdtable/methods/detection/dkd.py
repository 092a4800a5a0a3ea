"""DKD on detectors: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, on the student's proposals.

The boxes are those of ``kd``. The target of a box is the class that it was assigned, with background as one class like
the others:

    DKD = 1/R * sum over boxes of ( alpha TCKD + beta NCKD )

at T = 1, alpha = 1 and beta = 0.25, without warm-up: on CIFAR the released code weighs NCKD more, and lets the term
rise. Of one class beside the background NCKD is 0. ``dkd+reviewkd`` has the terms of both, DKD's at 1.1.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdtable.methods.base import Setting
from kdtable.methods.detection.base import DetectorMethod, given
from kdtable.methods.detection.boxes import other_boxes
from kdtable.methods.dkd import dkd_loss
from kdtable.methods.objective import Params
from kdtable.methods.ranges import TEMPERATURE, WEIGHT
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs


@dataclass(frozen=True)
class ProposalDKDParams(Params):
    """Hyper-parameters.

    Attributes:
        temperature: T.
        alpha: weight of the assigned class's part.
        beta: weight of the other classes' part.
    """

    temperature: Annotated[PositiveFloat, TEMPERATURE] = 1.0
    alpha: Annotated[NonNegativeFloat, WEIGHT] = 1.0
    beta: Annotated[NonNegativeFloat, WEIGHT] = 0.25


class DKD(DetectorMethod):
    """The assigned class's part of KD on proposals, and that of the other classes."""

    hyper = ProposalDKDParams
    term = "dkd"
    student_features = teacher_features = frozenset({"class_logits"})
    weight_range = None

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(ProposalDKDParams)

    @classmethod
    def unfit_detectors(cls, student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
        """Refuse RetinaNets, whose classes share no softmax."""
        if student.dense and teacher.dense:
            return "it divides a softmax over classes and background, and a RetinaNet has none"
        return other_boxes(student, teacher)

    def distilled(self, student: DetectorOutputs, teacher: DetectorOutputs, batch: DetectionBatch) -> Tensor:
        """The weighted sum of both parts, averaged over the boxes."""
        s, t, labels = given(student.class_logits), given(teacher.class_logits), given(student.labels)
        p = self.params
        return dkd_loss(s, t, labels, p.temperature, p.alpha, p.beta).sum() / max(1, len(s))
