"""What every method is: weighted loss terms, trainable helpers, stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.methods.base_terms import CLASSIFIERS, BaseTerm, without_teacher
from kdtable.methods.objective import Objective, P, Params, as_kind
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import CONSTANT, Schedule

#: Gives a network's batch norms in front of its taps before the activation, ``None`` where there is none.
Norms = Callable[[], Sequence[nn.BatchNorm2d | None]]


@dataclass(frozen=True, slots=True)
class Term:
    """One addend of a stage's loss: its name, its weight, and how that changes over the stage's epochs."""

    name: str
    weight: float
    schedule: Schedule = CONSTANT

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch of the stage, from 1."""
        return self.weight * self.schedule.at(epoch)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training with its own recipe and loss.

    Attributes:
        name: "main" for the last one, which the tables report.
        recipe: of this stage.
        terms: of its loss, in the order of addition.
        student_features: what the terms read of the student beyond its logits: of "stem", "stages", "preacts",
            "embedding", "branches".
        teacher_features: the same of the teacher.
        student_terms: names of terms that read no teacher.
        teacher_mode: "eval", or "train" where the teacher's batch norms use the batch's own statistics.
        task: name of the stage's task; "" for the run's.
    """

    name: str
    recipe: Recipe
    terms: tuple[Term, ...]
    student_features: frozenset[str] = frozenset()
    teacher_features: frozenset[str] = frozenset()
    student_terms: frozenset[str] = frozenset()
    teacher_mode: str = "eval"
    task: str = ""

    @property
    def uses_teacher(self) -> bool:
        """Whether any term reads the teacher; a term of weight 0 counts."""
        return any(term.name not in self.student_terms for term in self.terms)


@dataclass(frozen=True, slots=True)
class Setting:
    """All that a method may know of the run that it is built for.

    Attributes:
        recipe: how the main stage is trained.
        objective: loss terms, hyper-parameters, schedules, and epochs of the stages before the main one.
        labels: (N,) int64, the training labels, on the device of the run.
        num_classes: number of classes.
        student_shapes: an :class:`Outputs` of the student for one image (shapes only are to be read).
        teacher_shapes: the same of the teacher; ``None`` when no term uses a teacher.
        generator: the run's own generator, on the device of the run.
        student: the student itself, to be read only; ``None`` where a method is built for shapes alone.
        teacher: the teacher itself, to be read only.
        image_size: height and width of the images.
        ranks: the processes that train the run together.
        base_terms: that come with the task.
    """

    recipe: Recipe
    objective: Objective
    labels: Tensor
    num_classes: int
    student_shapes: Outputs
    teacher_shapes: Outputs | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    student: nn.Module | None = None
    teacher: nn.Module | None = None
    image_size: int = 32
    ranks: Ranks = SINGLE_PROCESS
    base_terms: Mapping[str, BaseTerm] = field(default_factory=lambda: CLASSIFIERS)

    def params(self, kind: type[P]) -> P:
        """The hyper-parameters, as the method's own type."""
        return as_kind(self.objective.params, kind)


class Method(nn.Module):
    """One way to distil.

    A subclass names the features that it reads beyond the logits, builds its adaptors from the setting, and gives
    its own term in :meth:`distillation`. Any method can carry the terms that come with the task. A method that prepares
    the student or a helper first overrides :meth:`stages`, and :meth:`trained` and :meth:`set_modes` for what is
    trained and what runs in train mode in them.
    """

    #: Its hyper-parameters: a frozen dataclass that extends those of every method.
    hyper: ClassVar[type[Params]] = Params
    #: Whether ``X+kd`` is a row: not where the method has soft targets of its own, or no teacher.
    combines_with_kd: ClassVar[bool] = True
    #: Raised whenever the same setting would give other numbers; part of a run's identity.
    version: ClassVar[int] = 1
    #: Name of the method's own term of the main stage; empty where there is none.
    term: ClassVar[str] = ""
    #: Names of its own terms that read no teacher.
    student_terms: ClassVar[frozenset[str]] = frozenset()
    #: Features beyond the logits that the main stage reads: of "stem", "stages", "preacts", "embedding", "branches".
    student_features: ClassVar[frozenset[str]] = frozenset()
    teacher_features: ClassVar[frozenset[str]] = frozenset()
    #: Whether its own terms compare images of a batch with each other, so that a share of a batch is not enough.
    relates_samples: ClassVar[bool] = False
    #: Terms that are sums over images, not means: those of a batch's shares add up to the batch's.
    summed_terms: ClassVar[frozenset[str]] = frozenset()
    #: Whether its loss needs to know which training images a batch has.
    of_training_images: ClassVar[bool] = False
    #: What the stages before the main one read of the teacher. A plan must know both before anything is built.
    early_teacher_features: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        if setting.teacher_shapes is not None:
            reason = self.inapplicable(setting.student_shapes, setting.teacher_shapes)
            if reason:
                raise ValueError(reason)
        if unknown := setting.objective.terms.keys() - {*setting.base_terms, *self.own_terms()}:
            raise ValueError(f"{type(self).__name__} has no term {min(unknown)}")

    @classmethod
    def needs_teacher(cls, terms: Mapping[str, float]) -> bool:
        """Whether a run with these terms in its main stage reads the teacher in any stage."""
        return not terms.keys() <= cls.student_terms | without_teacher(CLASSIFIERS)

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Why the method cannot be run on networks with these outputs, in one clause; ``None`` if it can."""
        return None

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """As :meth:`inapplicable`, by hyper-parameters and the teacher's batch norms too."""
        return cls.inapplicable(student_shapes, teacher_shapes)

    def stages(self) -> tuple[Stage, ...]:
        """The stages of a run, in order; here the main stage alone."""
        return (self.main_stage(),)

    def main_stage(self) -> Stage:
        """The last stage, as the setting weighs it."""
        objective = self.setting.objective
        terms = tuple(
            Term(name, weight, objective.schedules.get(name, CONSTANT)) for name, weight in objective.terms.items()
        )
        features = self.student_features, self.teacher_features
        return Stage("main", self.setting.recipe, terms, *features, self._terms_without_teacher())

    def early_stage(self, name: str, term: str, student_features: frozenset[str], lr: float | None = None) -> Stage:
        """A stage before the main one: a term of the method's own alone, at a constant rate (the recipe's if none)."""
        epochs = self.setting.objective.stage_epochs[name]
        recipe = replace(self.setting.recipe, epochs=epochs, milestones=(), first_epoch_lr=None, warmup_epochs=0)
        recipe = recipe if lr is None else replace(recipe, lr=lr)
        features = student_features, self.early_teacher_features
        return Stage(name, recipe, (Term(term, 1.0),), *features, self._terms_without_teacher())

    def _terms_without_teacher(self) -> frozenset[str]:
        return self.student_terms | without_teacher(self.setting.base_terms)

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The parameters that a stage's optimiser holds: all of the student's and of the method's."""
        return [*student.parameters(), *self.parameters()]

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Put the student and the helpers in train or eval mode for a stage: all in train mode."""
        student.train()
        self.train()

    def begin_step(self, teacher: Outputs | None, batch: Batch) -> None:
        """Take note of a process's share of a batch before its terms are asked for, where there are several shares.

        What depends on the whole batch is summed over the processes here, by ``setting.world``.
        """

    def end_epoch(
        self, stage: Stage, epoch: int, student: nn.Module, last_test_batch: Callable[[], tuple[Outputs, Batch]]
    ) -> None:
        """Look back on an epoch (from 1) of a stage, before the student is tested.

        Args:
            stage: that the epoch was of.
            epoch: its number.
            student: in eval mode; may be changed.
            judge: gives the student's outputs, with the features that the stage reads, for the last batch of the test
                images in a random order, and that batch.
        """

    def sweep_before(self, stage: Stage, epoch: int) -> int | None:
        """How many training images the method wants to be shown before an epoch (from 1); ``None`` for no sweep.

        A sweep shows the training images as test images are shown, in random order, both networks in eval mode. It
        ends with the first batch with which the images before that batch are more than this number.
        """
        return None

    def begin_sweep(self) -> None:
        """Forget what an earlier sweep showed. What a sweep comes to is kept in buffers, so that it is checkpointed."""

    def observe(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        """A sweep's next batch, without gradients; the outputs have the features that the stage reads."""

    def end_sweep(self) -> None:
        """Make use of what was shown."""

    def loss(self, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The unweighted term ``name`` as a scalar; teacher tensors are constants."""
        base = self.setting.base_terms.get(name)
        if teacher is None and (base is None or base.reads_teacher):
            raise ValueError(f"term {name} uses the teacher, and there is none")
        if base is not None:
            return base.loss(student, teacher, batch, self.setting.objective.params)
        assert teacher is not None
        return self.own_terms()[name](student, teacher, batch)

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Batch], Tensor]]:
        """The method's own terms by name, those of earlier stages included."""
        return {self.term: self.distillation} if self.term else {}

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The method's own term as a scalar; called only when the term is in the stage."""
        raise TypeError(f"{type(self).__name__} has no term of its own")
