"""The reducers and margins of ``mgd``: how the teacher channels that a student channel owns become one.

``groups`` (C_s, g) holds the teacher channels of each student channel.
"""

import math
from typing import Final

import torch
from torch import Tensor

REDUCERS: Final = ("amp", "rd", "sp", "sm")
#: If a smaller fraction of the values is negative, the margin is -3 s, not their mean.
RARE: Final = 0.001


def reduced(t: Tensor, groups: Tensor, reducer: str, draw: Tensor | None = None) -> Tensor:
    """Reduce a teacher's tap to (B, C_s, H, W).

    Args:
        t: (B, C_t, H, W) tap before its activation.
        groups: (C_s, g) int64.
        reducer: "amp" (largest magnitude, with its sign), "sp" (largest), "rd" (the drawn one), "sm" (the only one).
        draw: (B, C_s, 1, H, W) int64 below g, for "rd".
    """
    owned = t[:, groups]  # (B, C_s, g, H, W)
    if reducer == "sp":
        return owned.amax(dim=2)
    if reducer == "sm":
        return owned[:, :, 0]
    chosen = draw if draw is not None else owned.abs().argmax(dim=2, keepdim=True)
    return owned.gather(2, chosen).squeeze(2)


def reduced_margin(margin: Tensor, groups: Tensor, reducer: str, draw: Tensor | None = None) -> Tensor:
    """Reduce a teacher's margins to (1, C_s, 1, 1).

    Args:
        margin: (C_t,) one per channel.
        groups: (C_s, g) int64.
        reducer: as in :func:`reduced`; "amp" takes the mean of the margins, not that of the chosen channel.
        draw: (C_s, 1) int64 below g, for "rd".
    """
    owned = margin[groups]
    if reducer == "amp":
        one = owned.mean(dim=1)
    elif reducer == "sp":
        one = owned.amax(dim=1)
    else:
        one = owned[:, 0] if draw is None else owned.gather(1, draw).squeeze(1)
    return one.view(1, -1, 1, 1)


def margins(scale: Tensor, shift: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(C,) expected value of each channel of a batch norm, given that it is negative.

    For a Gaussian of mean m = ``shift`` and deviation s = |``scale``| it is m - s phi(m / s) / Phi(-m / s). It is -3 s
    if less than a thousandth of the Gaussian is negative, and min(m, 0) if s = 0, where the released code divides by 0.

    Args:
        scale: (C,) weight of the batch norm.
        shift: (C,) bias of the batch norm.
        dtype: of the result.
    """
    s, m = scale.detach().cpu().double().abs(), shift.detach().cpu().double()
    negative = torch.special.ndtr(-m / s)
    density = (-(m / s).square() / 2).exp() / math.sqrt(2 * math.pi)
    expected = torch.where(negative > RARE, m - s * density / negative, -3 * s)
    return torch.where(s > 0, expected, m.clamp(max=0)).to(dtype)
