"""FSP: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.

The flow between consecutive taps a and b is the matrix of inner products of their channels, per sample:

    M[p, q] = mean over positions of b_p a_q,   loss = mean of (M_s - M_t)^2

summed over pairs of taps. The larger map of a pair is average-pooled first. Channels must agree at every tap; sizes
may differ.

As the CRD benchmark runs it: taps are the stem and the stage outputs. The stage "init" of 30 epochs trains the
student's feature layers on this loss alone, at a constant rate. The main stage is cross-entropy; the benchmark's weight
of the method there multiplies a constant 0.

Memory: a matrix has C_a C_b numbers per sample. For small and wide maps (4x4, 512 channels) that is 16 times the
features. Smaller matrices would give the squared difference only by cancellation of nearly equal numbers.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Stage
from kdtable.methods.parts.adaptors import (
    feature_modules,
    given,
    set_features_to_train,
    unequal_channels,
)
from kdtable.methods.parts.pooling import pool_to_smaller
from kdtable.models.outputs import Outputs


def fsp_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over pairs of consecutive taps of the mean squared difference of flow matrices.

    Args:
        student: feature maps (B, C, H, W), at least two, shallow to deep.
        teacher: the teacher's maps, constants, with the same channels at each tap.

    Raises:
        ValueError: the numbers of taps differ.
    """
    flows = zip(pairwise(student), pairwise(teacher), strict=True)
    taps = [F.mse_loss(flow(*s), flow(*t)) for s, t in flows]
    return sum(taps[1:], start=taps[0])


def flow(a: Tensor, b: Tensor) -> Tensor:
    """(B, C_b, C_a): the flow matrix of a (B, C_a, H, W) and b (B, C_b, H', W')."""
    a, b = (x.flatten(2) for x in pool_to_smaller(a, b))
    return b @ a.mT / a.shape[2]


class FSP(Method):
    """Flow of the solution procedure, in the initial stage."""

    term = "fsp"
    early_teacher_features = frozenset({"stem", "stages"})

    @classmethod
    def needs_teacher(cls, terms: Mapping[str, float]) -> bool:
        """Always: the initial stage reads it."""
        return True

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps whose channels differ."""
        return unequal_channels(_taps(student_shapes), _taps(teacher_shapes))

    def stages(self) -> tuple[Stage, ...]:
        """The initial stage and the main one."""
        return (self.early_stage("init", "fsp", frozenset({"stem", "stages"})), self.main_stage())

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The student's feature layers in "init"; then the student."""
        if stage.name == "main":
            return list(student.parameters())
        return [p for module in feature_modules(student) for p in module.parameters()]

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Put in train mode what is trained, and in eval mode the rest."""
        if stage.name == "main":
            student.train()
        else:
            set_features_to_train(student)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The flow loss of the stem and the stage outputs."""
        return fsp_loss(_taps(student), _taps(teacher))


def _taps(outputs: Outputs) -> tuple[Tensor, ...]:
    return (given(outputs.stem), *outputs.stages)
