"""CSE+L2, also called CE+L2: the simplest feature distillation, as torchdistill runs it on ImageNet.

The embeddings e_s and e_t (last features after their ReLU, globally average-pooled) are compared without an adaptor:

    L = CE + 15 * mean over samples and channels of (e_s - e_t)^2

It is a method of its own, and the first stage of PAD-L2 (see ``pad_l2``).
"""

from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method
from kdtable.methods.parts.adaptors import given
from kdtable.models.outputs import Outputs


def l2_loss(s: Tensor, t: Tensor) -> Tensor:
    """Mean squared difference.

    Args:
        s: (B, D) student embeddings.
        t: (B, D) teacher embeddings, constants.
    """
    return F.mse_loss(s, t)


def unequal_widths(student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
    """Why embeddings cannot be subtracted; ``None`` if their widths agree."""
    d_s, d_t = (given(shapes.embedding).shape[1] for shapes in (student_shapes, teacher_shapes))
    if d_s == d_t:
        return None
    return f"it compares embeddings of equal width, and the student's has {d_s} channels, the teacher's {d_t}"


class CSEL2(Method):
    """Cross-entropy and the distance of embeddings."""

    term = "l2"
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse embeddings of different width."""
        return unequal_widths(student_shapes, teacher_shapes)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The squared distance of the embeddings."""
        return l2_loss(given(student.embedding), given(teacher.embedding))
