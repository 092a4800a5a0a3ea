"""The contract of a method: weighted loss terms, trainable helpers, stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.methods.base_terms import CLASSIFIERS, BaseTerm, without_teacher
from kdtable.methods.objective import Objective, P, Params, SoftTargetParams, as_kind
from kdtable.methods.ranges import WEIGHT, Range
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import CONSTANT, Schedule

#: Returns, for each preact of a network, the batch norm that made it; ``None`` where there is none.
Norms = Callable[[], Sequence[nn.BatchNorm2d | None]]


#: Runs a network on a batch and keeps the features named.
Forward = Callable[[nn.Module, Batch, frozenset[str]], Outputs]


def _plain(network: nn.Module, batch: Batch, keep: frozenset[str]) -> Outputs:
    outputs: Outputs = network(batch.images, keep)
    return outputs


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a stage's loss, with a weight that a schedule may change over the epochs: ``Term("kd", 0.9)``."""

    name: str
    weight: float
    schedule: Schedule = CONSTANT

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch of the stage, counted from 1."""
        return self.weight * self.schedule.at(epoch)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training with its own recipe and loss.

    Attributes:
        name: "main" for the last stage, which the tables report.
        recipe: how this stage is trained.
        terms: the terms of its loss, in the order of addition.
        student_features: what the terms read of the student beyond its logits: any of "stem", "stages", "preacts",
            "embedding", "branches", "last".
        teacher_features: the same of the teacher.
        student_terms: names of the terms that do not read the teacher.
        teacher_mode: "eval", or "train": the teacher's batch norms then use the statistics of the batch.
        task: name of the stage's task; "" for the run's.
        momentum_gap: for two momenta (``dot``): by how much that of the terms without a teacher is below the recipe's,
            and that of the others above it; ``None`` for one.
    """

    name: str
    recipe: Recipe
    terms: tuple[Term, ...]
    student_features: frozenset[str] = frozenset()
    teacher_features: frozenset[str] = frozenset()
    student_terms: frozenset[str] = frozenset()
    teacher_mode: str = "eval"
    task: str = ""
    momentum_gap: float | None = None

    @property
    def uses_teacher(self) -> bool:
        """Whether any term reads the teacher; a term of weight 0 counts."""
        return any(term.name not in self.student_terms for term in self.terms)


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that a method may know about its run.

    Attributes:
        recipe: how the main stage is trained.
        objective: loss terms, hyper-parameters, schedules, and epochs of the stages before the main one.
        labels: (N,) int64, the training labels, on the run's device.
        num_classes: number of classes.
        student_shapes: :class:`Outputs` of the student for one image; read only the shapes.
        teacher_shapes: the same of the teacher; ``None`` if no term reads a teacher.
        generator: the run's own generator, on the run's device.
        student: the student, read-only; ``None`` if only shapes are known.
        teacher: the teacher, read-only; ``None`` if there is none.
        image_size: height and width of the images.
        ranks: the process group that trains the run.
        base_terms: the task's own terms by name.
        forward: runs a network of the method's own on a batch in the run's precision, keeping the features named.
        combined: whether the method is one of a combination, whose objective has terms of other methods too.
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
    forward: Forward = _plain
    combined: bool = False

    def params(self, kind: type[P]) -> P:
        """The hyper-parameters as the method's own dataclass: ``setting.params(CRDParams).dim``."""
        return as_kind(self.objective.params, kind)


class Method(nn.Module):
    """One way to distil: the base class of all methods.

    A subclass must give the following, unless the task's terms (``ce``, ``kd``) are all that it needs (``vanilla``):

    - ``term``: the name of its own loss term, which TOML and ``--set weight.l1=2`` use.
    - ``student_features``, ``teacher_features``: what the main stage reads beyond the logits.
    - :meth:`distillation`: the unweighted term as a scalar. Teacher tensors are constants; never change one in place.

        class L1(Method):
            term, student_features, teacher_features = "l1", frozenset({"embedding"}), frozenset({"embedding"})
            def distillation(self, student, teacher, batch): return F.l1_loss(student.embedding, teacher.embedding)

    Its name and its row, the weights of its terms, are given where it is registered (``kdtable.plugins.method``).

    It may override these; in brackets a built-in method that does:

    - ``version``: raise it whenever the same setting gives other numbers.
    - ``hyper``: the type of its hyper-parameters, a frozen dataclass (``crd``), with ranges for sweeps (``dkd``). If it
      extends ``SoftTargetParams``, the method must read ``standardise``, and ``X+ls`` exists (``dkd``).
    - ``weight_range``: where a sweep searches the weights of its own terms (``dkd``).
    - ``__init__``: build adaptors from the setting, after ``super().__init__(setting)`` (``fitnet``).
    - :meth:`own_terms`: give several terms (``cd``).
    - :meth:`loss`: give a term without a teacher, which ``student_terms`` names (``dml``).
    - :meth:`inapplicable`: refuse networks by their shapes (``fsp``).
    - :meth:`inapplicable_with`: refuse networks by hyper-parameters or batch norms too (``mgd``).
    - ``unmixed``: why it cannot be trained on mixed images, whose ``batch.labels`` are (B, C) probabilities, which
      ``F.cross_entropy`` takes as they are (``dkd``).
    - ``unaveraged``: why a moving average of the student would not do (``simkd``).
    - ``one_view``: "" if its own terms read both views of an image, ``Outputs.strong`` beside the weak one (``mlkd``).
    - :meth:`unfit`: refuse a recipe by hyper-parameters too (``ikl``).
    - ``combines_with_kd``: False refuses ``X+kd`` (``dih``).
    - ``alone``: why no other method can be beside it, as ``X+Y`` (``dml``).
    - :meth:`standardises`: say that ``X+ls`` exists although ``hyper`` does not (``kd``).
    - :meth:`main_stage`: let hyper-parameters choose features or teacher mode (``reviewkd``), or weights (``dih``), or
      momenta (``dot``).
    - :meth:`stages`: train earlier stages, built by :meth:`early_stage` (``ft``), whose teacher features
      ``early_teacher_features`` names.
    - :meth:`buffer_bytes`: say what it keeps in memory beside the student, if it is much.
    - :meth:`needs_teacher`: True if only an earlier stage reads the teacher (``ab``).
    - :meth:`trained`, :meth:`set_modes`: choose what a stage trains, and what runs in train mode (``ft``, ``heads``).
    - :meth:`sweep_before`, :meth:`begin_sweep`, :meth:`observe`, :meth:`end_sweep`: see training images before an epoch
      (``mgd``).
    - :meth:`begin_step`: see a whole shard before its micro-batches (``cd``).
    - :meth:`end_epoch`: change the student before it is evaluated (``heads``).
    - :meth:`predicted`, :meth:`kept_parameters`: measure more than the student, of which :meth:`predicted` reads
      ``measured_features`` (``simkd``).
    - ``keeps_gradients_apart``: True if the optimiser needs the gradients of single terms (``dot``).
    - ``relates_samples``: True if a term compares the images of a batch (``sp``).
    - ``summed_terms``: terms that sum over images instead of averaging (``cd``).
    - ``of_training_images``: True if the loss has no value on test images (``crd``).
    - ``several_teachers``: True if its terms read a teacher by ``Outputs.logits_at`` alone, so that the networks of
      ``resnet56+resnet110`` can teach it together (``kd``).
    - ``recordable``: False if a step reads a result on the host, so that no CUDA graph can hold it (``kdsvd``).

    Keep what must survive a restart in parameters, buffers or ``get_extra_state`` (``crd``: its generator's state).
    While training, draw from ``setting.generator``; ``__init__`` may draw from torch's seeded global generator.
    """

    #: Type of its hyper-parameters: a frozen dataclass that extends :class:`Params`.
    hyper: ClassVar[type[Params]] = Params
    #: Whether ``X+kd`` exists: False for a method with soft targets of its own, or without a teacher.
    combines_with_kd: ClassVar[bool] = True
    #: Why it cannot be one of the methods of ``X+Y``, as a clause without its subject; "" if it can be.
    alone: ClassVar[str] = ""
    #: Part of a run's identity: raise it whenever the same setting gives other numbers.
    version: ClassVar[int] = 1
    #: Where ``kdtable sweep --trials`` searches the weights of its own terms. ``None`` where hyper-parameters with
    #: ranges weight the parts of its term, so that its weight would say the same twice, or where it has no other term.
    weight_range: ClassVar[Range | None] = WEIGHT
    #: Name of the method's own term in the main stage; "" if it has none.
    term: ClassVar[str] = ""
    #: Names of its own terms that do not read the teacher.
    student_terms: ClassVar[frozenset[str]] = frozenset()
    #: What the main stage reads beyond the logits: any of "stem", "stages", "preacts", "embedding", "branches",
    #: "last".
    student_features: ClassVar[frozenset[str]] = frozenset()
    teacher_features: ClassVar[frozenset[str]] = frozenset()
    #: Whether its own terms compare the images of a batch with each other, so that they need the whole batch.
    relates_samples: ClassVar[bool] = False
    #: Terms whose micro-batch values add up to the batch's: sums over images, not means.
    summed_terms: ClassVar[frozenset[str]] = frozenset()
    #: Whether its loss reads positions in the training set, so that it has no value on test images.
    of_training_images: ClassVar[bool] = False
    #: Whether its optimiser needs the gradients of single terms, which rules out divided batches and fp16.
    keeps_gradients_apart: ClassVar[bool] = False
    #: Why its own terms cannot take mixed images (``mixup``, ``cutmix``), in one clause; "" if they can.
    unmixed: ClassVar[str] = ""
    #: Why a moving average of the student's weights is not what it measures (``ema``), in one clause; "" if it is.
    unaveraged: ClassVar[str] = ""
    #: Why it cannot be trained on two views of an image (``views``), in one clause; "" if it can.
    one_view: ClassVar[str] = "its own terms see one view of an image, and views gives two"
    #: What :meth:`predicted` reads of the student beyond the logits.
    measured_features: ClassVar[frozenset[str]] = frozenset()
    #: Whether a CUDA graph can hold a step: False if the loss waits for a result on the host.
    recordable: ClassVar[bool] = True
    #: Whether all its terms read a teacher by :meth:`Outputs.logits_at` alone, so that it can be several networks.
    several_teachers: ClassVar[bool] = False
    #: What earlier stages read of the teacher. A class attribute, since planning builds no method.
    early_teacher_features: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        if setting.teacher_shapes is not None:
            reason = self.inapplicable(setting.student_shapes, setting.teacher_shapes)
            if reason:
                raise ValueError(reason)
        if not setting.combined:
            self._check_terms()

    def _check_terms(self) -> None:
        if unknown := self.setting.objective.terms.keys() - {*self.setting.base_terms, *self.own_terms()}:
            raise ValueError(f"{type(self).__name__} has no term {min(unknown)}")

    @classmethod
    def standardises(cls) -> bool:
        """Whether ``X+ls`` exists: its own term compares logits, which can be standardised."""
        return issubclass(cls.hyper, SoftTargetParams)

    @classmethod
    def needs_teacher(cls, terms: Mapping[str, float]) -> bool:
        """Whether any stage reads the teacher, if the main stage has these terms."""
        return not terms.keys() <= cls.student_terms | without_teacher(CLASSIFIERS)

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Why the method cannot run on networks with these outputs, in one clause; ``None`` if it can."""
        return None

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """As :meth:`inapplicable`, but by hyper-parameters and the teacher's batch norms too."""
        return cls.inapplicable(student_shapes, teacher_shapes)

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """Why the method cannot be trained by a recipe, in one clause; ``None`` if it can."""
        if recipe.optimizer != "sgd" and cls.keeps_gradients_apart:
            return f"it has two momenta, and optimizer {recipe.optimizer} has none"
        if recipe.clip and cls.keeps_gradients_apart:
            return "it keeps the gradients of two losses apart, which clip scales down together"
        causes = [(recipe.mixes, cls.unmixed), (recipe.ema, cls.unaveraged), (recipe.views, cls.one_view)]
        return next((why for given, why in causes if given and why), None)

    @classmethod
    def buffer_bytes(cls, objective: Objective, weights: int, teacher_width: int) -> int:
        """Bytes of what the method keeps beside the student: for the estimate of memory, if it is much.

        Args:
            objective: of the run.
            weights: bytes of the student's weights.
            teacher_width: of the teacher's embedding; 0 without a teacher.
        """
        return 0

    def stages(self) -> tuple[Stage, ...]:
        """The stages of a run in order; by default the main stage alone."""
        return (self.main_stage(),)

    def main_stage(self) -> Stage:
        """The last stage, with the terms and schedules of the setting's objective."""
        objective = self.setting.objective
        terms = tuple(
            Term(name, weight, objective.schedules.get(name, CONSTANT)) for name, weight in objective.terms.items()
        )
        features = self.student_features, self.teacher_features
        return Stage("main", self.setting.recipe, terms, *features, self._terms_without_teacher())

    def early_stage(self, name: str, term: str, student_features: frozenset[str], lr: float | None = None) -> Stage:
        """A stage before the main one that trains one own term at a constant rate: ``lr``, or the recipe's."""
        epochs = self.setting.objective.stage_epochs[name]
        recipe = replace(self.setting.recipe, epochs=epochs, milestones=(), first_epoch_lr=None, warmup_epochs=0)
        recipe = replace(recipe, schedule="steps", ema=0.0, iterations=0, warmup_iterations=0)
        recipe = recipe if lr is None else replace(recipe, lr=lr)
        features = student_features, self.early_teacher_features
        return Stage(name, recipe, (Term(term, 1.0),), *features, self._terms_without_teacher())

    def _terms_without_teacher(self) -> frozenset[str]:
        return self.student_terms | without_teacher(self.setting.base_terms)

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The parameters that a stage's optimiser holds; by default all of the student and the method."""
        return [*student.parameters(), *self.parameters()]

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Put the student and the helpers in train or eval mode before each epoch; by default all in train mode."""
        student.train()
        self.train()

    def begin_step(self, teacher: Outputs | None, batch: Batch) -> None:
        """Prepare for the micro-batches of a batch; called only if there are several, with this rank's shard.

        Reduce here, by ``setting.ranks``, what depends on the whole batch.
        """

    def end_epoch(
        self, stage: Stage, epoch: int, student: nn.Module, last_test_batch: Callable[[], tuple[Outputs, Batch]]
    ) -> None:
        """Act at the end of an epoch, before the student is evaluated.

        Args:
            stage: the epoch's stage.
            epoch: the epoch's number in it, from 1.
            student: in eval mode; may be changed.
            last_test_batch: returns the last batch of the shuffled test images, and the student's outputs for it with
                the features that the stage reads: ``(outputs, batch)``.
        """

    def predicted(self, outputs: Outputs) -> Outputs:
        """The outputs to measure, given the student's; by default the student's own."""
        return outputs

    def kept_parameters(self) -> int:
        """How many parameters the measured network has beside the student's."""
        return 0

    def sweep_before(self, stage: Stage, epoch: int) -> int | None:
        """How many training images to sweep before an epoch (from 1); ``None`` for no sweep.

        A sweep passes training images in random order, with the test transform, through both networks in eval mode. It
        ends after the first batch that begins beyond this number of images.
        """
        return None

    def begin_sweep(self) -> None:
        """Clear what earlier sweeps left. Keep a sweep's result in buffers, so that it is checkpointed."""

    def observe(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        """Take a sweep's next batch, without gradients; the outputs have the features that the stage reads."""

    def end_sweep(self) -> None:
        """Finish a sweep: compute what it was for."""

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
        """The method's own terms by name, with those of earlier stages."""
        return {self.term: self.distillation} if self.term else {}

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The method's own unweighted term as a scalar; called only if the stage has the term."""
        raise TypeError(f"{type(self).__name__} has no term of its own")
