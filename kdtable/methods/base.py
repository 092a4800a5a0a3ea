"""What every method is: weighted loss terms, trainable helpers, stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.models.outputs import Outputs
from kdtable.recipe import Recipe

#: A hyper-parameter as a paper's TOML or ``--set`` can give it.
Param = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Term:
    """One addend of a stage's loss: its name and its weight."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training with its own recipe and loss terms; terms are added in this order."""

    name: str
    recipe: Recipe
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """All that a method may know of the run that it is built for.

    Attributes:
        recipe: how the main stage is trained.
        terms: weight of each loss term of the main stage, in the order of addition.
        params: the method's hyper-parameters.
        labels: (N,) int64, the training labels, on the device of the run.
        num_classes: number of classes.
        student_shapes: an :class:`Outputs` of the student for one image (shapes only are to be read).
        teacher_shapes: the same of the teacher; ``None`` when no term uses a teacher.
        generator: the run's own generator, on the device of the run.
    """

    recipe: Recipe
    terms: Mapping[str, float]
    params: Mapping[str, Param]
    labels: Tensor
    num_classes: int
    student_shapes: Outputs
    teacher_shapes: Outputs | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)


class Method(nn.Module):
    """One way to distil.

    A subclass names the features that it reads beyond the logits, builds its adaptors from the setting, and gives
    its own term in :meth:`distillation`. CE and KD are terms that any method can carry.
    """

    #: Raised whenever the same setting would give other numbers; part of a run's identity.
    version: ClassVar[int] = 1
    #: Name of the method's own term; empty where there is none.
    term: ClassVar[str] = ""
    #: Features beyond the logits that the term reads: of "stem", "stages", "preacts", "embedding".
    student_features: ClassVar[frozenset[str]] = frozenset()
    teacher_features: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self._losses: dict[str, Callable[[Outputs, Outputs | None, Batch], Tensor]] = {
            "ce": self._cross_entropy,
            "kd": self._soft_targets,
            self.term: self._own,
        }

    @classmethod
    def check(cls, params: Mapping[str, Param]) -> None:
        """Refuse hyper-parameters that cannot be used, before anything is built.

        Raises:
            ValueError: says which and why.
        """
        if float(params.get("kd_temperature", 1)) <= 0:
            raise ValueError(f"kd_temperature must be positive, not {params['kd_temperature']}")

    @property
    def uses_teacher(self) -> bool:
        """Whether any term reads the teacher; a term of weight 0 counts."""
        return any(name != "ce" for name in self.setting.terms)

    def stages(self) -> tuple[Stage, ...]:
        """The stages of a run, in order; here the main stage alone."""
        terms = tuple(Term(name, weight) for name, weight in self.setting.terms.items())
        return (Stage("main", self.setting.recipe, terms),)

    def loss(self, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The unweighted term ``name`` as a scalar; teacher tensors are constants."""
        return self._losses[name](student, teacher, batch)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The method's own term as a scalar; called only when the term is in the stage."""
        raise TypeError(f"{type(self).__name__} has no term of its own")

    def _own(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return self.distillation(student, _present(teacher), batch)

    @staticmethod
    def _cross_entropy(student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return F.cross_entropy(student.logits, batch.labels)

    def _soft_targets(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        from kdtable.methods.kd import kd_loss  # kd.py builds on this module

        temperature = float(self.setting.params["kd_temperature"])
        return kd_loss(student.logits, _present(teacher).logits, temperature)


def _present(teacher: Outputs | None) -> Outputs:
    if teacher is None:
        raise ValueError("a term that uses the teacher was asked for without a teacher")
    return teacher
