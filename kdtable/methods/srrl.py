"""SRRL: Yang et al., "Knowledge distillation via softmax regression representation learning", ICLR 2021.

A connector c (1x1 convolution without bias, batch norm, ReLU) brings the student's last map S to the teacher's width.
With g the spatial mean, e the teacher's embedding, and W, b the teacher's frozen classifier:

    SRRL = mean of (g(c(S)) - e)^2 + lambda * mean of (W g(c(S)) + b - t)^2

So the teacher's classifier should find in the student's features what it finds in its own. lambda = 1. ``version`` =
"embedding" is the SimKD benchmark's: the connector reads the student's embedding as a 1 x 1 map, so that its batch norm
sees one value per image and channel, and KD of weight 1 at T = 4 is added (row ``srrl+kd``).

Only the teacher's embedding and logits are read, so it may be cached.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Norms, Setting, Stage
from kdtable.methods.cd import Connector
from kdtable.methods.objective import Params, as_kind
from kdtable.methods.parts.adaptors import given, teacher_shapes
from kdtable.methods.parts.classifiers import frozen_classifier
from kdtable.methods.ranges import WEIGHT
from kdtable.models.outputs import Outputs


@dataclass(frozen=True)
class SRRLParams(Params):
    """Hyper-parameters.

    Attributes:
        version: what the connector reads of the student: its last "map", or its "embedding".
        logit_weight: lambda.
    """

    version: Literal["map", "embedding"] = "map"
    logit_weight: Annotated[NonNegativeFloat, WEIGHT] = 1.0


class SRRL(Method):
    """The student's features, as the teacher's classifier sees them."""

    hyper = SRRLParams
    term = "srrl"
    student_features = frozenset({"last"})  # the default's; main_stage asks for what the run sets
    teacher_features = frozenset({"embedding"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(SRRLParams)
        student = self._map(setting.student_shapes)
        self.connector = Connector(student.shape[1], given(teacher_shapes(setting).embedding).shape[1])

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """Refuse students without a last map, if that is what the connector reads."""
        if as_kind(params, SRRLParams).version == "map" and student_shapes.last is None:
            return "the student shows no last map (--set version=embedding reads its embedding)"
        return None

    def main_stage(self) -> Stage:
        """The main stage, with the student's tap of ``version``."""
        tap = "last" if self.params.version == "map" else "embedding"
        return replace(super().main_stage(), student_features=frozenset({tap}))

    def _map(self, student: Outputs) -> Tensor:
        return given(student.last) if self.params.version == "map" else given(student.embedding)[:, :, None, None]

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The distance of features, and that of the logits that the teacher's classifier makes of them."""
        feature, logit, _ = self.parts(student, teacher)
        return feature + self.params.logit_weight * logit

    def parts(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """The two distances as scalars, and the logits (B, C) of the teacher's classifier."""
        pooled = self.connector(self._map(student)).mean(dim=(2, 3))
        predicted = F.linear(pooled, *frozen_classifier(self.setting.teacher))
        return F.mse_loss(pooled, given(teacher.embedding)), F.mse_loss(predicted, teacher.logits), predicted
