"""The losses and adaptors of fine-grained imitation (``fgfi``) at marked places; see ``masks``."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def imitation_loss(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    """The first code's: squared differences at marked places, summed over channels, / (2 * marked places).

    Without a marked place it is 0; the code divides 0 by 0.

    Args:
        s: (B, C, H, W) adapted map of the student.
        t: (B, C, H, W) of the teacher, a constant.
        mask: (B, H, W) bool.
    """
    return _squares(s, t, mask) / (2 * mask.sum()).clamp(min=1)


def levels_imitation_loss(s: Sequence[Tensor], t: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """The mean over FPN levels of squared differences at marked places, / (2 * marked places * channels).

    Args:
        s: (B, C, H, W) adapted maps of the student.
        t: (B, C, H, W) of the teacher, constants.
        masks: (B, H, W) bool, one per level.
    """
    parts = [imitation_loss(a, b, mask) / a.shape[1] for a, b, mask in zip(s, t, masks, strict=True)]
    return torch.stack(parts).mean()


def _squares(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return ((s - t).square() * mask.unsqueeze(1)).sum()


def adaptor(student: int, teacher: int) -> nn.Conv2d:
    """A 3x3 convolution between numbers of channels, with weights of at most 2e-4; its bias is PyTorch's."""
    conv = nn.Conv2d(student, teacher, 3, padding=1)
    with torch.no_grad():
        conv.weight.normal_().fmod_(2).mul_(1e-4)
    return conv
