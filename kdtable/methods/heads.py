"""Fine-tuning of a teacher's heads: the preparation of DIH (arXiv 2103.00497).

    loss = sum over the heads of CE(head(tap), y)

unweighted, on a trained network ``NETWORK+heads`` whose backbone is frozen and in eval mode. As the released code runs
it, but for which epoch is kept: there each head is kept from the epoch at which its loss on the last batch of the
shuffled test set was smallest (16 images), here the last epoch's are.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.models.outputs import Outputs


def branch_loss(branches: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sum of the cross-entropies of several classifiers.

    Args:
        branches: (B, C) logits of each.
        labels: (B,) int64.
    """
    losses = [F.cross_entropy(logits, labels) for logits in branches]
    return sum(losses[1:], start=losses[0])


class Heads(Method):
    """The student's extra classifiers, alone; no teacher."""

    term = "heads"
    student_features = frozenset({"branches"})
    student_terms = frozenset({"ce", "heads"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if not setting.student_shapes.branches:
            raise ValueError("there are no heads to train: name the network with them, NETWORK+heads")

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The heads."""
        return list(student.get_submodule("branches").parameters())

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """All in eval mode, and no gradients for the backbone."""
        student.eval()
        student.get_submodule("backbone").requires_grad_(False)

    def loss(self, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """See the base class; the heads' term reads no teacher."""
        if name == self.term:
            return branch_loss([logits for logits, _ in student.branches], batch.labels)
        return super().loss(name, student, teacher, batch)
