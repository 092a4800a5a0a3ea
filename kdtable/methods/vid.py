"""VID: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019.

At each tap a regressor predicts the teacher's feature map from the student's, with a variance per channel:

    var_c = ln(1 + exp(a_c)) + 1e-5,   loss = mean of 1/2 ((mu - t)^2 / var + ln var) over all elements

summed over taps; a_c starts where var is 5. The regressor is three 1x1 convolutions without bias, with ReLU between
them. The Gaussian's constant is left out, so the loss may be negative. If sizes differ, the larger map is
average-pooled, the student's before its regressor.

As the CRD benchmark runs it: taps are the stage outputs, weight 1. a_c has the learning rate and the weight decay of
all parameters. Unlike the reference's, our ln(1 + exp(a)) does not overflow for large a.
"""

import math

import torch
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.parts.adaptors import teacher_shapes, unequal_number
from kdtable.methods.parts.pooling import pool_to_smaller
from kdtable.models.outputs import Outputs

EPS = 1e-5
START = 5.0


def gaussian_loss(mean: Tensor, t: Tensor, log_scale: Tensor) -> Tensor:
    """Mean negative log-likelihood of the teacher's map over all elements, without its constant.

    Args:
        mean: (B, C, H, W) prediction from the student's map.
        t: (B, C, H, W) the teacher's map, a constant.
        log_scale: (C,) a_c.
    """
    variance = (torch.logaddexp(log_scale, log_scale.new_zeros(())) + EPS).view(1, -1, 1, 1)
    loss: Tensor = 0.5 * ((mean - t).square() / variance + variance.log()).mean()
    return loss


class Prediction(nn.Module):
    """Predict a teacher's map of ``out_channels`` from a student's of ``in_channels``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
        )
        self.log_scale = nn.Parameter(torch.full((out_channels,), math.log(math.expm1(START - EPS))))

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """The loss of one tap."""
        s, t = pool_to_smaller(s, t)
        return gaussian_loss(self.regressor(s), t, self.log_scale)


class VID(Method):
    """Variational information of the stage outputs."""

    term = "vid"
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        pairs = zip(setting.student_shapes.stages, teacher_shapes(setting).stages, strict=True)
        self.predictions = [Prediction(s.shape[1], t.shape[1]) for s, t in pairs]
        for k, prediction in enumerate(self.predictions):
            self.add_module(f"vid{k}", prediction)

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps that cannot be paired."""
        return unequal_number(student_shapes.stages, teacher_shapes.stages)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The loss summed over the stage outputs."""
        taps: list[Tensor] = [p(s, t) for p, s, t in zip(self.predictions, student.stages, teacher.stages, strict=True)]
        return sum(taps[1:], start=taps[0])
