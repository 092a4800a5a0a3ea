"""The contract of a task: its batches, forward passes, base loss terms and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from kdtable.data.sets import Images
from kdtable.data.spec import DataSpec
from kdtable.data.stream import PartName
from kdtable.distributed import SINGLE_PROCESS, Ranks, shard_sizes
from kdtable.methods.base import Method
from kdtable.methods.base_terms import BaseTerm, without_teacher
from kdtable.models.outputs import EVERYTHING
from kdtable.numerics.precision import Precision
from kdtable.recipes.metrics import Metric
from kdtable.recipes.recipe import Recipe

#: A task's batch type. It has a length, ``whole`` (the length of the batch that it is a shard of), ``epoch``, and
#: ``part(rows)``, the batch of a slice of its examples.
TaskBatch: TypeAlias = Any
#: A task's type of network outputs for a batch, with ``part(rows)``, too.
TaskOutputs: TypeAlias = Any


class Meter(Protocol):
    """Accumulates metrics over the batches of one pass. Each pass has a new meter."""

    def update(self, outputs: TaskOutputs, batch: TaskBatch) -> None:
        """Add the outputs for a batch.

        Training may record this call as a CUDA graph and replay it. So it updates device tensors in place, and reads no
        value back.
        """

    def merge(self, ranks: Ranks) -> None:
        """Add the other ranks' sums."""

    def result(self) -> dict[str, float]:
        """The metrics of the pass, by stored name."""


class ClosingMeter(Protocol):
    """Measures a student once, in the last epoch of its main stage, beside the meter of every epoch."""

    #: Whether it reads the teacher's outputs.
    with_teacher: bool

    def update(self, outputs: TaskOutputs, teacher: TaskOutputs | None, batch: TaskBatch) -> None:
        """Add the student's outputs for a batch, and the teacher's if there is one."""

    def merge(self, ranks: Ranks) -> None:
        """Add the other ranks' sums."""

    def result(self) -> dict[str, float]:
        """The measures by stored name."""


class Task(ABC):
    """One task on one data set, with the batches of one recipe and seed.

    A subclass defines its metrics and base terms, and how a batch is made, passed to a network, divided and measured.
    Nothing else in the engine looks into batches or outputs.

        for batch in task.batches("main", epoch=1):
            outputs = task.forward(network, batch, keep=frozenset())

    Args:
        images: the data set.
        recipe: sets the batch size and the augmentation.
        seed: seed of the batches.
        precision: precision and device of the networks.
        ranks: process group that shares every batch.
    """

    #: Metrics that tables can show. The first is the main one, which chooses the best epoch.
    metrics: ClassVar[tuple[Metric, ...]]
    #: The task's own loss terms by name; every method can use them.
    base_terms: ClassVar[Mapping[str, BaseTerm]]
    #: Features that methods may read beyond the plain outputs.
    features: ClassVar[frozenset[str]] = EVERYTHING
    #: Features beyond the plain outputs that the test meter reads.
    measured_features: ClassVar[frozenset[str]] = frozenset()
    #: Teacher features that depend on one student's outputs, so that a cohort cannot share them: see `teacher_for`.
    per_student_features: ClassVar[frozenset[str]] = frozenset()

    #: Whether a CUDA graph can hold a pass: False if shapes depend on what images show.
    recordable: ClassVar[bool] = True

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
        """Type of sums over an epoch: float64, or float32 on Apple GPUs, which lack it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @classmethod
    def needs_teacher(cls, method: type[Method], terms: Mapping[str, float]) -> bool:
        """Whether a method with these main-stage terms needs the teacher in any stage."""
        alone = without_teacher(cls.base_terms)
        return method.needs_teacher({name: weight for name, weight in terms.items() if name not in alone})

    @classmethod
    def base_terms_of(cls, recipe: Recipe) -> Mapping[str, BaseTerm]:
        """The base terms as a recipe changes them; by default they are the same under all."""
        return cls.base_terms

    # --- batches

    @abstractmethod
    def batches(self, stage: str, epoch: int) -> Iterator[TaskBatch]:
        """This rank's shards of an epoch's batches: equal for every student and at every call."""

    @abstractmethod
    def sweep(self, epoch: int) -> Iterator[TaskBatch]:
        """The training set with the test transform, in a random order that depends on the epoch."""

    @property
    def watched(self) -> PartName:
        """The part that students are evaluated on after every epoch, and that every choice rests on.

        ``validation`` where training images are held out for it; the test set is then measured once, at the end.
        """
        return "validation" if self.images.spec.validation else "test"

    @abstractmethod
    def evaluation_batches(self, part: PartName, ranks: Ranks | None = None) -> Iterator[TaskBatch]:
        """A part in order, with the test transform, divided among ``ranks`` (by default the task's)."""

    @abstractmethod
    def last_watched_batch(self, stage: str, epoch: int) -> TaskBatch:
        """The last batch of the watched part in a random order of the epoch; the whole batch on every rank."""

    @property
    @abstractmethod
    def waited(self) -> float:
        """Total seconds that training waited for batches to be read from disk."""

    @staticmethod
    @abstractmethod
    def probe(image_size: int, count: int = 1, like: Tensor | None = None) -> TaskBatch:
        """A batch of ``count`` blank examples to read shapes from, with the type and device of ``like``."""

    @classmethod
    @abstractmethod
    def imitation(cls, data: DataSpec, recipe: Recipe, seed: int, precision: Precision) -> "Task":
        """The task on one batch of random data shaped like ``data``, for timing steps."""

    def divide(
        self, batch: TaskBatch, teacher: TaskOutputs | None, count: int
    ) -> Iterator[tuple[TaskBatch, TaskOutputs | None]]:
        """Divide a batch and its teacher outputs into ``count`` micro-batches, whose sizes differ by at most one."""
        start = 0
        for size in shard_sizes(len(batch), count):
            rows = slice(start, start + size)
            yield batch.part(rows), teacher and teacher.part(rows)
            start += size

    @abstractmethod
    def gather(
        self, outputs: TaskOutputs, teacher: TaskOutputs | None, batch: TaskBatch
    ) -> tuple[TaskOutputs, TaskOutputs | None, TaskBatch]:
        """Gather outputs and batch from all ranks' shards. What no method reads may be left out."""

    # --- networks

    @staticmethod
    @abstractmethod
    def apply(network: nn.Module, batch: TaskBatch, keep: frozenset[str]) -> TaskOutputs:
        """A plain forward pass in the network's own type."""

    @abstractmethod
    def forward(self, network: nn.Module, batch: TaskBatch, keep: frozenset[str]) -> TaskOutputs:
        """A forward pass in the run's precision, with float32 outputs."""

    def shared_features(self, needs: frozenset[str]) -> frozenset[str]:
        """What the teacher pass that a cohort shares must keep for members that read ``needs`` of the teacher."""
        return needs - self.per_student_features

    def teacher_for(
        self, network: nn.Module | None, shared: TaskOutputs | None, student: TaskOutputs, batch: TaskBatch
    ) -> TaskOutputs | None:
        """Add the ``per_student_features`` to the teacher outputs that the cohort shares, without gradients.

        Called only in stages that read one of these features.

        Args:
            network: the teacher.
            shared: the teacher's outputs for the batch.
            student: the student's outputs.
            batch: the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} names features per student and does not give them")

    # --- measuring

    @abstractmethod
    def meter(self, part: PartName) -> Meter:
        """A new meter for an epoch's training (``train``), or another part; metric names of training differ.

        Stored names of what held-out images measure begin with ``validation-`` beside that.
        """

    def meter_of(self, part: PartName, network: nn.Module) -> Meter:
        """A new meter for one network on a part other than ``train``; by default :meth:`meter`'s.

        The network is in eval mode, and may be run on other images first.
        """
        return self.meter(part)

    def closing_meter(self, *, with_teacher: bool) -> ClosingMeter | None:
        """A new meter of what is measured once, at the end of a run; ``None`` if the task has nothing to measure then.

        Args:
            with_teacher: whether the student has a teacher.
        """
        return None

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Evaluate a network on the test set, in this process alone. Leaves the network in eval mode."""
        network.eval()
        meter = self.meter("test")
        for batch in self.evaluation_batches("test", SINGLE_PROCESS):
            meter.update(self.forward(network, batch, self.measured_features), batch)
        return meter.result()


def tensors_of(value: Any) -> list[Tensor]:
    """List the tensors in a batch or in outputs (nested dataclasses, sequences, mappings), in order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in tensors_of(part)]
