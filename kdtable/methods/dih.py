"""DIH: Asadian and Salehi-Abari, "Distilling Knowledge via Intermediate Classifiers", arXiv 2103.00497.

Linear classifiers ("heads") on the teacher's feature maps, trained beforehand, give soft targets beside its own. With
t_0 the teacher's logits, t_b those of head b of k, and KD as in ``kd``:

    L = sum over b = 0..k with alpha_b != 0 of [ (1 - alpha_b) CE(s, y) + alpha_b KD_T(t_b, s) ]

T = 5 and every alpha is 0.1. The terms ce and kd (0.9 and 0.1: the paper's KD) are b = 0. The method's own term, of
weight 1, is the sum over the heads.

In the released code this is a plain sum: labels weigh k + 1 times as much as in KD, at KD's learning rate. ``teachers``
= "mean" divides the loss by the number of classifiers used. A head whose alpha is 0 adds nothing, no cross-entropy
either. All classifiers have one temperature; the code fails with several.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import teacher_shapes
from kdtable.methods.parts.number_lists import check_fractions, one_each
from kdtable.methods.soft_targets import kd_loss
from kdtable.models.outputs import Outputs


def dih_loss(s: Tensor, heads: Sequence[Tensor], labels: Tensor, alphas: Sequence[float], temperature: float) -> Tensor:
    """Sum over the heads of the KD objective.

    Args:
        s: (B, C) student logits.
        heads: (B, C) logits of each of the teacher's heads, constants.
        labels: (B,) int64.
        alphas: weight of each head's soft targets; its cross-entropy weighs 1 - alpha.
        temperature: T > 0.

    Raises:
        ValueError: the numbers of heads and alphas differ.
    """
    used = [(head, alpha) for head, alpha in zip(heads, alphas, strict=True) if alpha != 0]
    hard = sum(1 - alpha for _, alpha in used) * F.cross_entropy(s, labels)
    return sum((alpha * kd_loss(s, head, temperature) for head, alpha in used), start=hard)


@dataclass(frozen=True)
class DIHParams(Params):
    """Hyper-parameters.

    Attributes:
        kd_temperature: T of all classifiers.
        alphas: weights in [0, 1] of the heads' soft targets: one number, or one per head, shallow to deep.
        teachers: "sum" of the classifiers' losses, as in the released code, or "mean".
    """

    kd_temperature: PositiveFloat = 5.0
    alphas: str = "0.1"
    teachers: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        """Raise `ValueError` for an alpha outside [0, 1]."""
        check_fractions("alphas", self.alphas)


class DIH(Method):
    """Soft targets of the heads of a teacher ``NETWORK+heads``, beside CE and KD."""

    hyper = DIHParams
    combines_with_kd = False
    term = "dih"
    teacher_features = frozenset({"branches"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(DIHParams)
        self.alphas = one_each("alphas", self.params.alphas, len(teacher_shapes(setting).branches))

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse a teacher without heads."""
        return None if teacher_shapes.branches else "the teacher has no heads"

    def main_stage(self) -> Stage:
        """The main stage, with weights divided by the number of classifiers for ``teachers`` = "mean"."""
        stage = super().main_stage()
        if self.params.teachers == "sum":
            return stage
        teachers = sum(alpha != 0 for alpha in self.alphas) + (self.setting.objective.terms.get("kd", 0) != 0)
        return replace(stage, terms=tuple(replace(term, weight=term.weight / teachers) for term in stage.terms))

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The KD objective, summed over the heads."""
        heads = [logits for logits, _ in teacher.branches]
        return dih_loss(student.logits, heads, batch.labels, self.alphas, self.params.kd_temperature)
