"""PAD-L2: Zhang et al., "Prime-Aware Adaptive Distillation", ECCV 2020, as torchdistill runs it on ImageNet.

A branch (linear, batch norm) of the student's embedding e_s predicts the logarithm v of a variance per channel:

    PAD = mean over samples and channels of [ (e_t - e_s)^2 / (1e-6 + exp(v)) + v ]

so that samples which the student cannot fit weigh less. The gradient reaches the student through v too. There is no
factor 1/2; the loss may be negative.

The stage "l2" trains the student as ``cse-l2`` does (CE + 15 L2), with its rate divided by 10 after one and two thirds
of its epochs. The main stage goes on with CE + PAD. Published: 90 epochs from lr 0.2, then 30 at 0.002. Under another
paper's recipe both stages begin at that recipe's rate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Final

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage, Term
from kdtable.methods.base_terms import without_teacher
from kdtable.methods.cse_l2 import l2_loss, unequal_widths
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import given
from kdtable.methods.ranges import WEIGHT
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import in_proportion

STAGE: Final = "l2"
EPS: Final = 1e-6


def pad_loss(s: Tensor, t: Tensor, log_variance: Tensor) -> Tensor:
    """Mean of the squared difference over its variance, plus the variance's logarithm.

    Args:
        s: (B, D) student embeddings.
        t: (B, D) teacher embeddings, constants.
        log_variance: (B, D) v.
    """
    return ((t - s).square() / (EPS + log_variance.exp()) + log_variance).mean()


@dataclass(frozen=True)
class PADL2Params(Params):
    """Hyper-parameters of the first stage.

    Attributes:
        first_lr: its learning rate; 0 for the main stage's.
        l2_weight: weight of L2, beside cross-entropy.
    """

    first_lr: NonNegativeFloat = 0.2
    l2_weight: Annotated[NonNegativeFloat, WEIGHT] = 15.0


class PADL2(Method):
    """A stage of L2, then adaptive distances."""

    hyper = PADL2Params
    term = "pad"
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})
    early_teacher_features = frozenset({"embedding"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        width = given(setting.student_shapes.embedding).shape[1]
        self.variance = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse embeddings of different width."""
        return unequal_widths(student_shapes, teacher_shapes)

    @classmethod
    def needs_teacher(cls, terms: Mapping[str, float]) -> bool:
        """Always: the first stage reads it."""
        return True

    def stages(self) -> tuple[Stage, ...]:
        """The stage of L2 and the main one."""
        params = self.setting.params(PADL2Params)
        first = self.early_stage(STAGE, "l2", self.student_features, params.first_lr or None)
        epochs = first.recipe.epochs
        recipe = replace(
            first.recipe, milestones=(in_proportion(1, epochs, 3), in_proportion(2, epochs, 3)), lr_factor=0.1
        )
        labelled = (Term(name, 1.0) for name in sorted(without_teacher(self.setting.base_terms)))
        terms = (*labelled, Term("l2", params.l2_weight))
        return (replace(first, recipe=recipe, terms=terms), self.main_stage())

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Batch], Tensor]]:
        """The terms of both stages."""
        return {self.term: self.distillation, "l2": self._l2}

    def _l2(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return l2_loss(given(student.embedding), given(teacher.embedding))

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The adaptive distance of the embeddings."""
        s = given(student.embedding)
        return pad_loss(s, given(teacher.embedding), self.variance(s))
