"""CC: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019.

Both embeddings are mapped to 128 dimensions by trained affine maps. With d_i = |e_s,i - e_t,i| elementwise:

    loss = mean over i = 0 .. B-2 of sum over dimensions of d_i d_{i+1}

As the CRD benchmark runs it (weight 0.02), which departs from the paper: these are products of neighbours in the
order of the batch, not the kernel correlations of all pairs. A batch of one sample has no neighbours, and the
formula 0 / 0; here its loss is 0.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Param, Setting
from kdtable.methods.parts.adaptors import given, teacher_shapes
from kdtable.models.outputs import Outputs

DIM = 128


def correlation_loss(s: Tensor, t: Tensor) -> Tensor:
    """Mean over neighbours in the batch of the product of their absolute differences.

    Args:
        s: (B, D) student embeddings after their affine map.
        t: (B, D) teacher embeddings after theirs.
    """
    gap = (s - t).abs()
    return (gap[:-1] * gap[1:]).sum() / max(len(gap) - 1, 1)


class Affine(nn.Module):
    """A linear layer with bias, under the name that the reference gives it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        mapped: Tensor = self.linear(features)
        return mapped


class CC(Method):
    """Correlation congruence of the embeddings. Hyper-parameter: ``dim`` of the common space."""

    term = "cc"
    relates_samples = True
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        dim = int(setting.params.get("dim", DIM))
        self.embed_s = Affine(given(setting.student_shapes.embedding).shape[1], dim)
        self.embed_t = Affine(given(teacher_shapes(setting).embedding).shape[1], dim)

    @classmethod
    def check(cls, params: Mapping[str, Param]) -> None:
        """Refuse a space without dimensions."""
        super().check(params)
        if not int(params.get("dim", DIM)) > 0:
            raise ValueError(f"dim must be positive, not {params['dim']}")

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The correlation loss of the mapped embeddings; it trains both maps."""
        return correlation_loss(self.embed_s(given(student.embedding)), self.embed_t(given(teacher.embedding)))
