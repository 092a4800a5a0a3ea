"""The loss of soft targets, which any method can use."""

from torch import Tensor
from torch.nn import functional as F


def kd_loss(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """T^2 times the Kullback-Leibler divergence from the teacher at temperature T, averaged over the batch.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, a constant.
        temperature: T > 0.
    """
    log_q = F.log_softmax(s / temperature, dim=1)
    log_p = F.log_softmax(t / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / s.shape[0])
