"""Train a network with all its classifiers: the teacher of TOFD (see ``tofd``).

    loss = CE(main classifier) + sum over the branches of CE(branch)

All classifiers are trained from the start on the plain sum, as in the DIH repository's script.
"""

from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.heads import branch_loss
from kdtable.models.outputs import Outputs


class Branches(Method):
    """Cross-entropy of every branch, beside that of the main classifier; no teacher."""

    combines_with_kd = False
    term = "branches"
    weight_range = None
    student_features = frozenset({"branches"})
    student_terms = frozenset({"branches"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if not setting.student_shapes.branches:
            raise ValueError("there are no branches to train: name the network with them, NETWORK+tofd")

    def loss(self, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """See the base class; the own term reads no teacher."""
        if name == self.term:
            return branch_loss([logits for logits, _ in student.branches], batch.labels)
        return super().loss(name, student, teacher, batch)
