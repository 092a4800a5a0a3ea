"""ND, KD++: Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction".

The term of arXiv 2305.17007 that goes beside others.

With s, t the embeddings, y the label, and e_y the direction of the teacher's mean embedding of the label's class over
the training images (before the first epoch, in eval mode; means are rounded to four decimals):

    ND = mean over images of 1 - s . e_y / max(|s|, |t|)

It turns the student's embedding to its class and makes it at least as long as the teacher's. Where |s| >= |t| the
divisor is |s|, with its gradient. KD++ is the row ``nd+kd``, with weights for some pairs; its KD term rises from 0 in
the first epoch over 20 (a schedule). If widths differ, an adaptor (batch norm, dropout of 0.5, linear) comes first.

Its tables come from another recipe than CRD's (learning rate 0.1, Nesterov, batch 128). DIST++, DKD++ and ReviewKD++ of
the paper are not here.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import given, teacher_shapes
from kdtable.models.dropout import dropped
from kdtable.models.outputs import Outputs

DECIMALS = 4
#: Least divisor, for two embeddings of 0.
LEAST = 1e-12


def nd_loss(s: Tensor, t: Tensor, directions: Tensor) -> Tensor:
    """(B,) ND of each image.

    Args:
        s: (B, D) student embeddings.
        t: (B, D_t) teacher embeddings, constants; only their length is read.
        directions: (B, D) unit vectors of the images' classes.
    """
    of_student, of_teacher = s.norm(dim=1), t.norm(dim=1)
    length = torch.where(of_student >= of_teacher, of_student, of_teacher).clamp(min=LEAST)
    return 1 - (s * directions).sum(dim=1) / length


class Adaptor(nn.Module):
    """Batch norm, dropout, linear, from the student's width to the teacher's."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_features)
        self.linear = nn.Linear(in_features, out_features)
        self.dropout = dropout
        self._seed = int(torch.randint(2**62, (), device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        normed = self.bn(x)
        batches = self.bn.num_batches_tracked
        if self.training and self.dropout and batches is not None:
            normed = dropped(normed, self.dropout, self._seed, batches)
        adapted: Tensor = self.linear(normed)
        return adapted


@dataclass(frozen=True)
class NDParams(Params):
    """Hyper-parameters.

    Attributes:
        dropout: probability in [0, 1) of the adaptor's dropout.
    """

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


class ND(Method):
    """Direction and length of the embedding."""

    hyper = NDParams
    term = "nd"
    unmixed = "it turns an embedding to its class, and a mixed image has two"
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})

    class_means: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        own, width = (given(x.embedding).shape[1] for x in (setting.student_shapes, teacher_shapes(setting)))
        self.adaptor = Adaptor(own, width, setting.params(NDParams).dropout) if own != width else None
        self.register_buffer("class_means", torch.zeros(setting.num_classes, width))

    def sweep_before(self, stage: Stage, epoch: int) -> int | None:
        """All training images before the first epoch."""
        return len(self.setting.labels) if epoch == 1 else None

    def begin_sweep(self) -> None:
        """Start new sums."""
        self._sums = torch.zeros_like(self.class_means)
        self._counts = torch.zeros_like(self.class_means[:, :1])

    def observe(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        """Add a batch's embeddings to the sums of their classes."""
        if teacher is None:
            raise ValueError("the class means are of the teacher's embeddings, and there is no teacher")
        classes = torch.arange(len(self._counts), device=batch.labels.device)
        of_class = (batch.labels == classes.unsqueeze(1)).to(self._sums.dtype)
        self._sums += of_class @ given(teacher.embedding).to(self._sums.dtype)
        self._counts += of_class.sum(dim=1, keepdim=True)

    def end_sweep(self) -> None:
        """Keep the rounded means."""
        ranks = self.setting.ranks
        means = ranks.all_reduce(self._sums) / ranks.all_reduce(self._counts).clamp(min=1)
        self.class_means.copy_(means.round(decimals=DECIMALS))

    def adapted(self, embedding: Tensor) -> Tensor:
        """The student's embedding in the teacher's width."""
        return embedding if self.adaptor is None else self.adaptor(embedding)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """ND, averaged over the images."""
        directions = F.normalize(self.class_means, dim=1)[batch.labels]
        return nd_loss(self.adapted(given(student.embedding)), given(teacher.embedding), directions).mean()
