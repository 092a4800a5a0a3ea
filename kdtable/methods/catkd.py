"""CAT-KD: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023.

A network's class map of class c is its last map F seen by the classifier's weights at every position, without the bias:
M_c = sum over k of W[c, k] F_k. Its spatial mean is the logit. With pool to r x r positions, and g the identity or each
class's scaling to unit length over the positions:

    CAT = mean over images, classes and positions of ( g(pool M_s) - g(pool M_t) )^2

Both maps are pooled adaptively, so that a smaller one is repeated. r, g and the weight differ by pair: r = 2 without
scaling for pairs of one style, and with it for MobileNetV2; r = 4 with scaling for ShuffleNets.

The released code changes the networks: their classifiers are 1x1 convolutions without a bias. Here both keep theirs, so
that the teacher stays the one whose accuracy was checked.
"""

from dataclasses import dataclass

from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import given
from kdtable.methods.parts.classifiers import classifier_of, frozen_classifier, without_last
from kdtable.models.outputs import Outputs


def class_maps(features: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W) class maps of a last map (B, D, H, W), by the weight (C, D) of the classifier."""
    return F.conv2d(features, weight[:, :, None, None])


def cat_loss(student: Tensor, teacher: Tensor, resolution: int, *, normalise: bool) -> Tensor:
    """The mean squared difference of pooled class maps.

    Args:
        student: (B, C, H, W) class maps.
        teacher: (B, C, H', W') of the teacher, constants.
        resolution: r.
        normalise: whether each class's map is scaled to unit length.
    """
    s, t = (F.adaptive_avg_pool2d(x, resolution).flatten(2) for x in (student, teacher))
    return F.mse_loss(F.normalize(s, dim=2), F.normalize(t, dim=2)) if normalise else F.mse_loss(s, t)


@dataclass(frozen=True)
class CATKDParams(Params):
    """Hyper-parameters.

    Attributes:
        resolution: r, positions along each side after pooling.
        normalise: whether each class's map is scaled to unit length.
    """

    resolution: PositiveInt = 2
    normalise: bool = False


class CATKD(Method):
    """Class maps of both networks."""

    hyper = CATKDParams
    term = "catkd"
    student_features = frozenset({"last"})
    teacher_features = frozenset({"last"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(CATKDParams)

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse networks without a last map."""
        return without_last(student_shapes, teacher_shapes)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The distance of the class maps; trains the student's classifier too."""
        of_teacher, _ = frozen_classifier(self.setting.teacher)
        maps = class_maps(given(student.last), classifier_of(self.setting.student).weight)
        resolution, normalise = self.params.resolution, self.params.normalise
        return cat_loss(maps, class_maps(given(teacher.last), of_teacher), resolution, normalise=normalise)
