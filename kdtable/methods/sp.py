"""SP: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.

With the features of a batch flattened to F (B, D), G = F F^T, and each row of G scaled to unit length:

    loss = sum over B x B of (G_t - G_s)^2 / B^2

As the CRD benchmark runs it: the last stage output alone, weight 3000. D may differ between the networks. A row of
zeros stays zero (eps 1e-12). Its gradient is finite, but 1e12 times that of a row of unit length.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method
from kdtable.models.outputs import Outputs


def similarity_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over taps of the mean squared difference of similarity matrices.

    Args:
        student: features (B, ...), one tensor per tap.
        teacher: the teacher's features at the same taps, constants.

    Raises:
        ValueError: the numbers of taps differ.
    """
    taps = [F.mse_loss(_similarity(s), _similarity(t)) for s, t in zip(student, teacher, strict=True)]
    return sum(taps[1:], start=taps[0])


def _similarity(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


class SP(Method):
    """Similarities within the batch, at the last stage output."""

    term = "sp"
    relates_samples = True
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The similarity loss of the last stage output."""
        return similarity_loss(student.stages[-1:], teacher.stages[-1:])
