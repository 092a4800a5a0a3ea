"""KD: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.

With p = softmax(t / T) and q = softmax(s / T):

    KD = T^2 / B * sum over samples and classes of p (ln p - ln q)

The CRD benchmark runs it as 0.1 CE + 0.9 KD at T = 4. Those weights are a table row, not part of the method.
"""

from torch import Tensor
from torch.nn import functional as F

from kdtable.methods.base import Method


def kd_loss(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """Softened Kullback-Leibler divergence from the teacher, summed over classes, averaged over the batch.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, a constant.
        temperature: T > 0.
    """
    log_q = F.log_softmax(s / temperature, dim=1)
    log_p = F.log_softmax(t / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / s.shape[0])


class KD(Method):
    """Soft targets: the KD term, which every method can carry, beside cross-entropy."""
