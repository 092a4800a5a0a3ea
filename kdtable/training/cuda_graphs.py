"""Record a training step once an epoch and replay it as one launch: CIFAR networks are too small to keep a GPU busy.

A recording fixes every address and every number that Python passes to a kernel, the learning rate included. So each
batch is copied into the same input tensors, and every epoch records its step anew. A few ordinary steps come first:
they warm up what allocates on first use. Recording executes nothing.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import torch

from kdtable.tasks.base import TaskBatch, TaskOutputs, tensors_of
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher, Teacher

#: Ordinary steps of an epoch before one is recorded.
WARM_UP: Final = 3

BatchAndOutputs = tuple[TaskBatch, TaskOutputs | None]


class Graph(Protocol):
    """Records the launches of a piece of work, and replays them."""

    def record(self, work: Callable[[], object], generators: list[torch.Generator]) -> None:
        """Record what ``work`` launches, without executing it.

        Raises:
            RuntimeError: ``work`` cannot be recorded.
        """

    def replay(self) -> None:
        """Execute the recorded launches."""


class CudaGraph:
    """A CUDA graph."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], object], generators: list[torch.Generator]) -> None:
        """See :class:`Graph`."""
        for generator in generators:
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            work()

    def replay(self) -> None:
        """See :class:`Graph`."""
        self._graph.replay()


class Inputs:
    """The input tensors of recorded steps: a batch and the teacher's outputs for it.

    A batch of another size than the epoch's first (the last one may be shorter) is passed on unrecorded.
    """

    def __init__(self, teacher: Teacher | None, needs: frozenset[str], new_graph: Callable[[], Graph]) -> None:
        self._teacher = teacher
        self._needs = needs
        # A teacher cache reads files on the host, which cannot be recorded.
        recordable = isinstance(teacher, FrozenTeacher)
        self._pass = Replayed(self._teacher_pass, [], new_graph) if recordable else self._teacher_pass
        self.batch: TaskBatch | None = None
        self.teacher_outputs: TaskOutputs | None = None

    def batches_with_outputs(self, batches: Iterator[TaskBatch]) -> Iterator[BatchAndOutputs]:
        """Yield each batch with the teacher's outputs for it; both are overwritten by the next."""
        for batch in batches:
            if self.batch is None:
                self.batch = batch
                self.teacher_outputs = self._outputs(batch)
            elif len(batch) == len(self.batch):
                _copy(self.batch, batch)
                if self._teacher is not None:
                    self._pass()
            else:
                yield batch, self._outputs(batch)
                continue
            yield self.batch, self.teacher_outputs

    def _outputs(self, batch: TaskBatch) -> TaskOutputs | None:
        return None if self._teacher is None else self._teacher.outputs(batch, self._needs)

    def _teacher_pass(self) -> None:
        _copy(self.teacher_outputs, self._outputs(self.batch))


class Replayed:
    """A callable without arguments and results that runs as it is at first, then is recorded and replayed.

    Work that cannot be recorded keeps running as it is; the log says why.
    """

    def __init__(
        self, work: Callable[[], None], generators: list[torch.Generator], new_graph: Callable[[], Graph]
    ) -> None:
        self._work = work
        self._generators = generators
        self._new_graph = new_graph
        self._warm = 0
        self._graph: Graph | None = None
        self._refused = False

    def __call__(self) -> None:
        """Run, record and replay, or replay the work."""
        if self._graph is None and not self._refused and self._warm >= WARM_UP:
            self._record()
        if self._graph is None:
            self._warm += 1
            self._work()
        else:
            self._graph.replay()

    def _record(self) -> None:
        graph = self._new_graph()
        try:
            graph.record(self._work, self._generators)
        except RuntimeError as error:
            self._refused = True
            logging.getLogger(__name__).info("not recorded, so run step by step: %s", error)
        else:
            self._graph = graph


class Steps:
    """One epoch's recorded steps, one per member, on shared inputs."""

    def __init__(self, inputs: Inputs, new_graph: Callable[[], Graph]) -> None:
        self._inputs = inputs
        self._new_graph = new_graph
        self._steps: dict[str, Replayed] = {}

    def step(self, member: Member, batch: TaskBatch, teacher_outputs: TaskOutputs | None) -> None:
        """Step a member on a batch; replay its recording where the batch is the recorded one."""
        if batch is not self._inputs.batch:
            member.step(batch, teacher_outputs)
            return
        if member.run_id not in self._steps:
            generators = [member.method.setting.generator]
            self._steps[member.run_id] = Replayed(
                lambda: member.step(batch, teacher_outputs), generators, self._new_graph
            )
        self._steps[member.run_id]()


def _copy(kept: TaskBatch | TaskOutputs, new: TaskBatch | TaskOutputs) -> None:
    for old, fresh in zip(tensors_of(kept), tensors_of(new), strict=True):
        old.copy_(fresh)
