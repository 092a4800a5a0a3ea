"""SimKD: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022.

A projector brings the student's last map S to the teacher's channels, and the teacher's own classifier reads its
spatial mean: the measured network is student, projector and teacher's classifier. The larger of both maps is
average-pooled to the smaller size first. With T the teacher's last map, of D_t channels, and each convolution without
bias and before a batch norm and a ReLU:

    projector = 1x1 to D_t / f, 3x3 to D_t / f, 1x1 to D_t            SimKD = mean of (projector(S) - T)^2

f = 2. There is no other term, so the student's own classifier is not trained, and a file of the student's weights alone
does not reach the accuracy of its run. The projector's parameters are the student's at test time, too: tables say how
many.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Norms, Setting
from kdtable.methods.objective import Params, as_kind
from kdtable.methods.parts.adaptors import given, teacher_shapes
from kdtable.methods.parts.classifiers import frozen_classifier, without_last
from kdtable.methods.parts.pooling import pool_to_smaller
from kdtable.methods.ranges import Range
from kdtable.models.outputs import Outputs


class Projector(nn.Module):
    """Three convolutions (1x1, 3x3, 1x1) without bias, each with a batch norm and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        narrow = out_channels // factor
        self.conv1 = nn.Conv2d(in_channels, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)))


@dataclass(frozen=True)
class SimKDParams(Params):
    """Hyper-parameters.

    Attributes:
        factor: f, by which the projector is narrower inside.
    """

    factor: Annotated[PositiveInt, Range(1, 4, whole=True)] = 2


class SimKD(Method):
    """The teacher's last map, by a projector that stays."""

    hyper = SimKDParams
    combines_with_kd = False
    term = "simkd"
    unaveraged = "its projector is measured too, and ema averages the student alone"
    weight_range = None
    student_features = frozenset({"last"})
    teacher_features = frozenset({"last"})
    measured_features = frozenset({"last"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        student, teacher = given(setting.student_shapes.last), given(teacher_shapes(setting).last)
        self.size = teacher.shape[2]
        self.projector = Projector(student.shape[1], teacher.shape[1], setting.params(SimKDParams).factor)
        self._predicted: Tensor | None = None

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """Refuse networks without a last map, and factors above the teacher's channels."""
        if reason := without_last(student_shapes, teacher_shapes):
            return reason
        channels, factor = given(teacher_shapes.last).shape[1], as_kind(params, SimKDParams).factor
        return f"factor {factor} leaves nothing of the teacher's {channels} channels" if factor > channels else None

    def kept_parameters(self) -> int:
        """Those of the projector and of the teacher's classifier."""
        kept = [*self.projector.parameters(), *frozen_classifier(self.setting.teacher)]
        return sum(tensor.numel() for tensor in kept)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The distance of the projected map from the teacher's."""
        s, t = pool_to_smaller(given(student.last), given(teacher.last))
        projected = self.projector(s)
        self._predicted = self._classified(projected).detach()
        return F.mse_loss(projected, t)

    def predicted(self, outputs: Outputs) -> Outputs:
        """The student's outputs with the logits of the teacher's classifier."""
        if self.training and self._predicted is not None:  # a second pass would move the projector's statistics
            return replace(outputs, logits=self._predicted)
        s = given(outputs.last)
        if s.shape[2] > self.size:
            s = F.adaptive_avg_pool2d(s, self.size)
        return replace(outputs, logits=self._classified(self.projector(s)))

    def _classified(self, projected: Tensor) -> Tensor:
        return F.linear(projected.mean(dim=(2, 3)), *frozen_classifier(self.setting.teacher))
