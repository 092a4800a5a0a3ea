"""How the teacher channels that one student channel owns become one: the reducers and margins of ``mgd``.

Groups (C_s, g) hold the teacher channels of each student channel.
"""

import math
from typing import Final

import torch
from torch import Tensor

REDUCERS: Final = ("amp", "rd", "sp", "sm")
#: Where fewer values are negative, the margin is no mean of them but -3 s.
RARE: Final = 0.001


def reduced(t: Tensor, groups: Tensor, reducer: str, draw: Tensor | None = None) -> Tensor:
    """(B, C_s, H, W) of a teacher's tap.

    Args:
        t: (B, C_t, H, W) before its activation.
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
    """(1, C_s, 1, 1) of a teacher's margins.

    Args:
        margin: (C_t,) of each channel.
        groups: (C_s, g) int64.
        reducer: as in :func:`reduced`; "amp" takes the mean and not the margin of the value's own channel.
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


def margins(scale: Tensor, shift: Tensor) -> Tensor:
    """(C,) float32 expectation of each channel of a batch norm given that it is negative.

    With a Gaussian of mean m = ``shift`` and deviation s = |``scale``|, m - s phi(m / s) / Phi(-m / s); where less than
    a thousandth of it is negative, -3 s. A channel of s = 0, where the released code divides by 0, has min(m, 0).

    Args:
        scale: (C,) weight of the batch norm.
        shift: (C,) its bias.
    """
    s, m = scale.detach().cpu().double().abs(), shift.detach().cpu().double()
    negative = torch.special.ndtr(-m / s)
    density = (-(m / s).square() / 2).exp() / math.sqrt(2 * math.pi)
    expected = torch.where(negative > RARE, m - s * density / negative, -3 * s)
    return torch.where(s > 0, expected, m.clamp(max=0)).float()
