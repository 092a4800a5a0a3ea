"""Contrastive losses against a queue of earlier vectors, as MoCo and SEED have them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def infonce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748): the mean over queries of the cross-entropy with their own key.

    The logits of query i are [q_i . k_i, q_i . queue] / T, and its class is 0. It is 0 with an empty queue.

    Args:
        q: (B, D) queries of length 1.
        k: (B, D) their keys of length 1, constants.
        queue: (D, K) earlier keys as columns of length 1.
        temperature: T > 0.
    """
    logits = contrast_logits(q, k, queue, temperature)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def contrast_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(B, 1 + K): the similarities of each query to its own key, and to the queue's, divided by T."""
    own = (q * k).sum(dim=1, keepdim=True)
    return torch.cat([own, q @ queue], dim=1) / temperature


def seed_loss(s: Tensor, t: Tensor, queue: Tensor, temperature: float, teacher_temperature: float) -> Tensor:
    """The mean of - sum p log q, with q = softmax([s . t, s . queue] / T) and p = softmax([t . t, t . queue] / T_t).

    Args:
        s: (B, D) of the student, of length 1.
        t: (B, D) of the teacher, of length 1, constants.
        queue: (D, K) earlier vectors of the teacher as columns of length 1.
        temperature: T > 0.
        teacher_temperature: T_t > 0.
    """
    target = contrast_logits(t, t, queue, teacher_temperature).softmax(dim=1)
    return -(target * contrast_logits(s, t, queue, temperature).log_softmax(dim=1)).sum(dim=1).mean()
