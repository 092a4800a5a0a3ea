"""Pool two feature maps to one size, as the CRD benchmark does."""

from torch import Tensor
from torch.nn import functional as F


def pool_to_smaller(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (B, C, H, W) to H x H of the smaller one."""
    if s.shape[2] > t.shape[2]:
        return F.adaptive_avg_pool2d(s, t.shape[2]), t
    if s.shape[2] < t.shape[2]:
        return s, F.adaptive_avg_pool2d(t, s.shape[2])
    return s, t
