"""PKT: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018.

With cosines between the embeddings of a batch, x / (|x| + 1e-7), and K = (cosine + 1) / 2, P = K / its row sum:

    loss = mean over B x B of P_t ln((P_t + 1e-7) / (P_s + 1e-7))

As the CRD benchmark runs it: the diagonal is part of P, and the loss is a mean over all entries (not a sum per row),
hence the weight of 30000.

Two departures where the reference gives NaN: the gradient of the length of a row of zeros is 0, and K is clamped at 0,
since rounding could make it negative and its logarithm undefined.
"""

import torch
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method
from kdtable.methods.parts.adaptors import given
from kdtable.models.outputs import Outputs

EPS = 1e-7


def pkt_loss(s: Tensor, t: Tensor) -> Tensor:
    """Mean divergence of the student's similarity distributions from the teacher's.

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
    """Divergence of the probabilities of being neighbours, from the embeddings."""

    term = "pkt"
    relates_samples = True
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The divergence of the embeddings' similarities."""
        return pkt_loss(given(student.embedding), given(teacher.embedding))
