"""PKT: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018.

With cosines between the embeddings of a batch, x / (|x| + 1e-7), and K = (cosine + 1) / 2, P = K / its row sum:

    loss = mean over B x B of P_t ln((P_t + 1e-7) / (P_s + 1e-7))

As the CRD benchmark runs it: the diagonal is part of P, and the mean over all entries (not a sum per row) goes with
the weight of 30000.

Two departures where the reference gives NaN: the gradient of a length is 0 at a row of zeros, and K is kept from
falling below 0 by rounding, which could take the logarithm of a negative number. Elsewhere nothing differs.
"""

import torch
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method
from kdtable.methods.parts.adaptors import given
from kdtable.models.outputs import Outputs

EPS = 1e-7


def pkt_loss(s: Tensor, t: Tensor) -> Tensor:
    """Mean divergence of the similarity distributions.

    Args:
        s: (B, D_s) student embeddings.
        t: (B, D_t) teacher embeddings, constants.
    """
    p_s, p_t = _probabilities(s), _probabilities(t)
    return (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean()


def _probabilities(e: Tensor) -> Tensor:
    scaled = e / (torch.linalg.vector_norm(e, dim=1, keepdim=True) + EPS)
    kernel: Tensor = ((scaled @ scaled.T + 1) / 2).clamp(min=0)
    return kernel / kernel.sum(dim=1, keepdim=True)


class PKT(Method):
    """Probabilities of being neighbours, from the embeddings."""

    term = "pkt"
    relates_samples = True
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The divergence of the embeddings' similarities."""
        return pkt_loss(given(student.embedding), given(teacher.embedding))
