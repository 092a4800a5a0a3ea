"""The contract of a task: what a batch is, how a network runs on it, which terms come with it, what is measured."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from kdtable.data.protocols import Images, PartName
from kdtable.data.spec import DataSpec
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.methods.base import Method
from kdtable.methods.base_terms import BaseTerm, without_teacher
from kdtable.numerics.precision import Precision
from kdtable.recipes.metrics import Metric
from kdtable.recipes.recipe import Recipe

#: A task's own batch. It has a length, ``whole`` (the length of the batch that it is a shard of), and ``epoch``.
TaskBatch: TypeAlias = Any
#: What a task's networks give for a batch.
TaskOutputs: TypeAlias = Any


class Meter(Protocol):
    """Adds up what is measured of the batches of one pass; a fresh one for each."""

    def update(self, outputs: TaskOutputs, batch: TaskBatch) -> None:
        """Add the outputs for a batch.

        In training this may be recorded once and replayed: it works in place on tensors of the device, and reads none.
        """

    def merge(self, ranks: Ranks) -> None:
        """Add what the other ranks saw."""

    def result(self) -> dict[str, float]:
        """What is stored of the pass, by name."""


class Task(ABC):
    """One task on one data set, with the batches of one recipe and seed.

    A subclass names its metrics and its base terms, and says how a batch is made, shown to a network, divided and
    measured. Nothing else in the engine looks into a batch or into outputs.

    Args:
        images: the data set.
        recipe: gives the batch size and the augmentation.
        seed: of the batches.
        precision: that networks run in, and the device.
        ranks: that share every batch.
    """

    #: What tables can show; the first is the main one, by which the best epoch is chosen.
    metrics: ClassVar[tuple[Metric, ...]]
    #: Loss terms that come with the task, by name, which every method can carry.
    base_terms: ClassVar[Mapping[str, BaseTerm]]
    #: Features beyond the plain outputs that the test images' meter reads.
    measured_features: ClassVar[frozenset[str]] = frozenset()
    #: Features of a teacher that depend on one student's outputs: a cohort cannot share them, see `teacher_for`.
    per_student_features: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, images: Images, recipe: Recipe, seed: int, precision: Precision, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        self.images = images
        self.precision = precision
        self.seed = seed
        self.ranks = ranks
        self.device = precision.device

    @property
    def sum_dtype(self) -> torch.dtype:
        """What sums over an epoch are kept in: float64, which Apple's GPUs lack."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @classmethod
    def needs_teacher(cls, method: type[Method], terms: Mapping[str, float]) -> bool:
        """Whether a run of a method with these terms in its main stage reads the teacher in any stage."""
        alone = without_teacher(cls.base_terms)
        return method.needs_teacher({name: weight for name, weight in terms.items() if name not in alone})

    # --- batches

    @abstractmethod
    def batches(self, stage: str, epoch: int) -> Iterator[TaskBatch]:
        """The batches of an epoch: the same for every student, whenever they are asked for; this rank's shards."""

    @abstractmethod
    def sweep(self, epoch: int) -> Iterator[TaskBatch]:
        """The training set in the view that networks are tested on, in a random order of that epoch."""

    @abstractmethod
    def test_batches(self, ranks: Ranks | None = None) -> Iterator[TaskBatch]:
        """The test set in its order, divided among ``ranks`` (by default the task's own)."""

    @abstractmethod
    def last_test_batch(self, stage: str, epoch: int) -> TaskBatch:
        """The last batch of the test set in a random order of that epoch, whole on every rank."""

    @property
    @abstractmethod
    def waited(self) -> float:
        """Seconds, since the start, that whoever asked for a batch waited for it to be read from disk."""

    @staticmethod
    @abstractmethod
    def probe(image_size: int, count: int = 1, like: Tensor | None = None) -> TaskBatch:
        """A batch of ``count`` empty examples, from which shapes are read; of the type and device of ``like``."""

    @classmethod
    @abstractmethod
    def imitation(cls, data: DataSpec, recipe: Recipe, seed: int, precision: Precision) -> "Task":
        """The task on random data that look like ``data``, one batch of them: what steps are timed on."""

    @abstractmethod
    def divide(
        self, batch: TaskBatch, teacher: TaskOutputs | None, count: int
    ) -> Iterator[tuple[TaskBatch, TaskOutputs | None]]:
        """A batch and the teacher's outputs for it in ``count`` micro-batches, whose sizes differ by at most one."""

    @abstractmethod
    def gather(
        self, outputs: TaskOutputs, teacher: TaskOutputs | None, batch: TaskBatch
    ) -> tuple[TaskOutputs, TaskOutputs | None, TaskBatch]:
        """The same for the whole batch, of which each rank has a shard; what no method reads may be left out."""

    # --- networks

    @staticmethod
    @abstractmethod
    def apply(network: nn.Module, batch: TaskBatch, keep: frozenset[str]) -> TaskOutputs:
        """A plain forward pass, in the network's own type."""

    @abstractmethod
    def forward(self, network: nn.Module, batch: TaskBatch, keep: frozenset[str]) -> TaskOutputs:
        """A forward pass in the run's precision; what comes out is float32 again."""

    def teacher_for(
        self, network: nn.Module | None, shared: TaskOutputs | None, student: TaskOutputs, batch: TaskBatch
    ) -> TaskOutputs | None:
        """What the teacher gives one student: what the cohort shares, and the ``per_student_features``, as constants.

        Asked for only by a stage that reads one of them.

        Args:
            network: the teacher.
            shared: its outputs for the batch.
            student: the student's.
            batch: that both were shown.
        """
        raise NotImplementedError(f"{type(self).__name__} names features per student and does not give them")

    # --- measuring

    @abstractmethod
    def meter(self, part: PartName) -> Meter:
        """A fresh meter of an epoch's training (``train``) or of the test set (``test``); names do not overlap."""

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """What is measured on the test set, by this process alone. Leaves the network in eval mode."""
        network.eval()
        meter = self.meter("test")
        for batch in self.test_batches(SINGLE_PROCESS):
            meter.update(self.forward(network, batch, self.measured_features), batch)
        return meter.result()


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a batch or in outputs: dataclasses, tuples and mappings of them, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in tensors_of(part)]
