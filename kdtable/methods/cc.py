"""CC: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019.

Both embeddings are mapped to 128 dimensions by trained affine maps. With d_i = |e_s,i - e_t,i| elementwise:

    loss = mean over i = 0 .. B-2 of sum over dimensions of d_i d_{i+1}

As the CRD benchmark runs it (weight 0.02). It departs from the paper: it multiplies neighbours in the order of the
batch, where the paper takes kernel correlations of all pairs. A batch of one sample has no neighbours and the formula
gives 0 / 0; here its loss is 0.
"""

from dataclasses import dataclass

from pydantic import PositiveInt
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import given, teacher_shapes
from kdtable.models.outputs import Outputs


def correlation_loss(s: Tensor, t: Tensor) -> Tensor:
    """Mean over neighbours in the batch of the product of their absolute student-teacher differences.

    Args:
        s: (B, D) student embeddings after their affine map.
        t: (B, D) teacher embeddings after theirs.
    """
    gap = (s - t).abs()
    return (gap[:-1] * gap[1:]).sum() / max(len(gap) - 1, 1)


class Affine(nn.Module):
    """A linear layer with bias, under the reference's name."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        mapped: Tensor = self.linear(features)
        return mapped


@dataclass(frozen=True)
class CCParams(Params):
    """Hyper-parameters.

    Attributes:
        dim: dimensions of the common space.
    """

    dim: PositiveInt = 128


class CC(Method):
    """Correlation congruence of the embeddings."""

    hyper = CCParams
    term = "cc"
    relates_samples = True
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        dim = setting.params(CCParams).dim
        self.embed_s = Affine(given(setting.student_shapes.embedding).shape[1], dim)
        self.embed_t = Affine(given(teacher_shapes(setting).embedding).shape[1], dim)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The correlation loss of the mapped embeddings; it trains both maps."""
        return correlation_loss(self.embed_s(given(student.embedding)), self.embed_t(given(teacher.embedding)))
