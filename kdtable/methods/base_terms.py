"""Loss terms of a task, which every method can use beside its own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor
from torch.nn import functional as F

from kdtable.methods.objective import Params
from kdtable.methods.soft_targets import compared, kd_loss
from kdtable.models.outputs import Outputs


@dataclass(frozen=True, slots=True)
class BaseTerm:
    """A loss term of a task.

    Attributes:
        loss: returns a scalar from the student's outputs, the teacher's, the batch, and the method's hyper-parameters.
        reads_teacher: whether it reads the teacher's outputs; if not, they may be ``None``.
    """

    loss: Callable[[Any, Any, Any, Any], Tensor]
    reads_teacher: bool = False


def labels_term(smoothing: float = 0.0) -> BaseTerm:
    """Cross-entropy with the labels, of which all C classes share ``smoothing``: 1 - s + s / C for an image's own.

    Of two views it is the sum.
    """

    def loss(student: Outputs, _: Outputs | None, batch: Any, __: object) -> Tensor:
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.to(student.logits.dtype)
        return _sum(F.cross_entropy(view.logits, labels, label_smoothing=smoothing) for view in student.views)

    return BaseTerm(loss)


def _soft_targets(student: Outputs, teacher: Outputs, _: object, params: Params) -> Tensor:
    """KD; of two views the sum."""
    return _sum(_kd(s, t, params) for s, t in zip(student.views, teacher.views, strict=True))


def _kd(student: Outputs, teacher: Outputs, params: Params) -> Tensor:
    t = teacher.logits_at(params.kd_temperature)
    s, t = compared(student.logits, t, standardise=params.kd_standardise)
    return kd_loss(s, t, params.kd_temperature)


def _sum(losses: Iterable[Tensor]) -> Tensor:
    """The sum, without a zero before a single one."""
    first, *others = losses
    return sum(others, start=first)


#: Terms of classification: the default of a method that is built without a task.
CLASSIFIERS: Final[Mapping[str, BaseTerm]] = {"ce": labels_term(), "kd": BaseTerm(_soft_targets, True)}


def without_teacher(terms: Mapping[str, BaseTerm]) -> frozenset[str]:
    """Names of the terms that do not read the teacher."""
    return frozenset(name for name, term in terms.items() if not term.reads_teacher)
