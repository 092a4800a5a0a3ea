"""Divergences between the logits of two networks, one number per image, that methods on logits alone share.

All stay finite for logits of any finite size: they are made of log-sum-exps, never of the logarithm of a probability.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def divergence(s: Tensor, t: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """(B,) T^2 KL of the student's softmax at T from the teacher's, image by image; its mean is ``kd_loss``.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        temperature: T > 0; a tensor gets the gradient of T^2, too.
    """
    log_q, log_p = (F.log_softmax(x / temperature, dim=1) for x in (s, t))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def soft_cross_entropy(s: Tensor, t: Tensor, temperature: float = 1.0) -> Tensor:
    """(B,) cross-entropy of the student's softmax at T under the teacher's, without T^2."""
    return -((t / temperature).softmax(dim=1) * F.log_softmax(s / temperature, dim=1)).sum(dim=1)


def without(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, C - 1) logits of all classes but the label's.

    Args:
        logits: (B, C).
        labels: (B,) int64.
    """
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, others + (others >= labels.unsqueeze(1)))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) how far a label's logit is above the log-sum-exp of the others: its sigmoid is the label's probability."""
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - without(logits, labels).logsumexp(dim=1)


def two_way_divergence(s: Tensor, t: Tensor) -> Tensor:
    """(B,) KL between two-way distributions that are given by their margins.

    Args:
        s: (B,) student margins.
        t: (B,) teacher margins, constants.
    """
    return _side(s, t) + _side(-s, -t)


def _side(s: Tensor, t: Tensor) -> Tensor:
    """(B,) one side's addend to :func:`two_way_divergence`."""
    return t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
