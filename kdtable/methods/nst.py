"""NST: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.

Each channel of a feature map is scaled to unit length over its positions; with the kernel k(a, b) = (a . b)^2:

    loss = mean k(t, t') + mean k(s, s') - 2 mean k(s, t)

over samples and pairs of channels, summed over taps (squared maximum mean discrepancy). Channel counts may differ. If
sizes differ, the larger map is average-pooled. The value includes the teacher's term, a constant. A channel of zeros
stays zero (eps 1e-12).

As the CRD benchmark runs it: taps are the stage outputs, weight 50. The mean of k over channels is the squared
Frobenius norm of the channels' Gram matrix, or the inner product of the positions' two Gram matrices. We compute the
smaller one, which never exceeds the size of the features.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method
from kdtable.methods.parts.adaptors import unequal_number
from kdtable.methods.parts.pooling import pool_to_smaller
from kdtable.models.outputs import Outputs


def nst_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over taps of the squared discrepancy between the channels of the two networks.

    Args:
        student: feature maps (B, C, H, W), one per tap; channels may differ from the teacher's.
        teacher: the teacher's maps at the same taps, constants.

    Raises:
        ValueError: the numbers of taps differ.
    """
    taps = [_discrepancy(*pool_to_smaller(s, t)) for s, t in zip(student, teacher, strict=True)]
    return sum(taps[1:], start=taps[0])


def _discrepancy(s: Tensor, t: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (s, t))
    (batch, c_s, positions), c_t = s.shape, t.shape[1]
    if 2 * positions**2 < c_s**2 + c_s * c_t + c_t**2:
        gram_s, gram_t = s.mT @ s / c_s, t.mT @ t / c_t
        return (gram_t.square().sum() + gram_s.square().sum() - 2 * (gram_s * gram_t).sum()) / batch
    return (t @ t.mT).square().mean() + (s @ s.mT).square().mean() - 2 * (s @ t.mT).square().mean()


class NST(Method):
    """Neuron selectivity of all stage outputs."""

    term = "nst"
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps that cannot be paired."""
        return unequal_number(student_shapes.stages, teacher_shapes.stages)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The discrepancy of the stage outputs."""
        return nst_loss(student.stages, teacher.stages)
