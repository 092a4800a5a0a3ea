"""Trainable maps between the taps of two networks, and checks of taps before a method is built."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.methods.base import Setting
from kdtable.models.network import Network
from kdtable.models.outputs import Outputs


class Convolution(nn.Module):
    """FitNets' regressor: a convolution and batch norm from a student's tap to a teacher's shape.

    The heights h_s and h_t choose the kernel: 3x3 with stride 2 for h_s = 2 h_t, transposed 4x4 with stride 2 for
    2 h_s = h_t, and otherwise, if h_s >= h_t, 1 + h_s - h_t without padding (1x1 for equal sizes).

        self.regress = Convolution(setting.student_shapes.stages[1], teacher_shapes(setting).stages[1], relu=True)

    Args:
        student: (N, C_s, H_s, W_s) tensor of the student's shape.
        teacher: (N, C_t, H_t, W_t) tensor of the teacher's shape.
        relu: whether a ReLU follows the batch norm.

    Raises:
        ValueError: no kernel leads from one height to the other.
    """

    def __init__(self, student: Tensor, teacher: Tensor, *, relu: bool) -> None:
        super().__init__()
        reason = unreachable(student, teacher)
        if reason:
            raise ValueError(reason)
        (_, c_s, h_s, w_s), (_, c_t, h_t, w_t) = student.shape, teacher.shape
        self.conv: nn.Module
        if h_s == 2 * h_t:
            self.conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif 2 * h_s == h_t:
            self.conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        self.bn = nn.BatchNorm2d(c_t)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_s, H_s, W_s) to (B, C_t, H_t, W_t)."""
        normed: Tensor = self.bn(self.conv(x))
        return F.relu(normed) if self.relu else normed


def unreachable(student: Tensor, teacher: Tensor) -> str | None:
    """Why no kernel of :class:`Convolution` leads from the student's size to the teacher's; ``None`` if one does."""
    h_s, h_t = student.shape[2], teacher.shape[2]
    if h_s >= h_t or 2 * h_s == h_t:
        return None
    return f"no convolution leads from a student's map of height {h_s} to a teacher's of height {h_t}"


def unequal_number(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> str | None:
    """Why taps cannot be compared one by one; ``None`` if their numbers agree."""
    if len(student) == len(teacher):
        return None
    return f"the student has {len(student)} feature maps to compare and the teacher {len(teacher)}"


def unequal_channels(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> str | None:
    """Why taps cannot be compared channel by channel; ``None`` if their channels agree at every tap."""
    c_s, c_t = ([x.shape[1] for x in taps] for taps in (student, teacher))
    if c_s == c_t:
        return None
    return f"it compares maps of equal channels, and the student has {c_s}, the teacher {c_t}"


def teacher_shapes(setting: Setting) -> Outputs:
    """The shapes of the teacher's outputs.

    Raises:
        ValueError: there is no teacher.
    """
    if setting.teacher_shapes is None:
        raise ValueError("the method needs a teacher, and there is none")
    return setting.teacher_shapes


def given(tensor: Tensor | None) -> Tensor:
    """The tensor, which is not ``None``: a feature that the stage names.

    Raises:
        ValueError: it is ``None``.
    """
    if tensor is None:
        raise ValueError("a network did not give the embeddings or the stem that the method needs")
    return tensor


def feature_modules(student: nn.Module) -> list[nn.Module]:
    """The children of a network that make its feature maps: all but its head."""
    return cast("Network", student).feature_modules()


def set_features_to_train(student: nn.Module) -> None:
    """Put the modules that make the feature maps in train mode and all others in eval mode."""
    student.eval()
    for module in feature_modules(student):
        module.train()
