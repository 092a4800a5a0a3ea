"""ABF: the attention-based fusion of ``reviewkd``, a trainable map from a student's tap to a teacher's."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ABF(nn.Module):
    """One fusion of the chain from the deepest tap to the shallowest.

    With u = BN(1x1 conv of the student's map) and v the deeper map's residual in the size of u:

        w_1, w_2 = sigmoid(1x1 conv of [u, v]),   u <- w_1 u + w_2 v

    Then u is resized to the teacher's map and becomes the residual, and BN(3x3 conv of u) is compared with the
    teacher's map. Resizing takes the nearest neighbour. All channels have the same maps w_1 and w_2, which need not add
    up to 1. There is no ReLU.

    Args:
        channels: channels of the student's map.
        mid: channels of the residual.
        out: channels of the teacher's map.
        size: height and width of the teacher's map; ``None`` where it is always that of the student's.
        fuse: whether a deeper tap gives a residual.
    """

    def __init__(self, channels: int, mid: int, out: int, size: tuple[int, int] | None, *, fuse: bool) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.Conv2d(channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.attention = nn.Conv2d(2 * mid, 2, 1) if fuse else None
        self.conv2 = nn.Conv2d(mid, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The map (B, out, size) to compare with the teacher's, and the residual (B, mid, size) for the next fusion.

        Args:
            x: (B, channels, H, W) the student's map.
            residual: (B, mid, H', W') of the next deeper fusion; ``None``: nothing is fused.
        """
        u: Tensor = self.bn1(self.conv1(x))
        if self.attention is not None and residual is not None:
            v = _resized(residual, (u.shape[2], u.shape[3]))
            w = self.attention(torch.cat([u, v], dim=1)).sigmoid()
            u = w[:, :1] * u + w[:, 1:] * v
        u = u if self.size is None else _resized(u, self.size)
        return self.bn2(self.conv2(u)), u


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")
