"""The loss of soft targets, which any method can use, and the standardisation of the logits that it compares.

Logit standardisation: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024. Both networks' logits
become z-scores over the classes, so that only the order and the relative gaps of a student's logits count.
"""

from torch import Tensor
from torch.nn import functional as F

#: Added to the standard deviation.
STD_EPS = 1e-7


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


def standardised(logits: Tensor) -> Tensor:
    """(z - mean) / (1e-7 + deviation) of each row of logits (B, C), with the unbiased deviation over the classes."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (STD_EPS + logits.std(dim=1, keepdim=True))


def compared(s: Tensor, t: Tensor, *, standardise: bool) -> tuple[Tensor, Tensor]:
    """The logits (B, C) that a soft-target term compares: both networks' own, or their z-scores."""
    return (standardised(s), standardised(t)) if standardise else (s, t)
