"""Record a cohort's steps once an epoch and replay them.

Each batch is copied into the same input tensors, and every epoch records its steps anew, since its learning rate is
part of the recording. A few ordinary steps come first: they warm up what allocates on first use. The first recording of
each member's stage is checked against an ordinary step (``kdtable.training.replay_check``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kdtable.tasks.base import TaskBatch, TaskOutputs, tensors_of
from kdtable.training.cuda_graphs import Graph
from kdtable.training.member import Member
from kdtable.training.replay_check import Recordable, checked_replay
from kdtable.training.teacher import FrozenTeacher, Teacher

#: Ordinary steps of an epoch before one is recorded.
WARM_UP: Final = 3

BatchAndOutputs = tuple[TaskBatch, TaskOutputs | None]
NewGraph = Callable[[], Graph]


@dataclass(frozen=True, slots=True, eq=False)
class TeacherPass:
    """Computes the teacher's outputs for a batch into the tensors of ``outputs``."""

    teacher: Teacher
    needs: frozenset[str]
    batch: TaskBatch
    outputs: TaskOutputs
    name: str = "the teacher pass"
    generators: tuple[torch.Generator, ...] = ()

    def __call__(self) -> None:
        """See :class:`Recordable`."""
        _copy(self.outputs, self.teacher.outputs(self.batch, self.needs))

    def state(self) -> dict[str, list[Tensor]]:
        """See :class:`Recordable`."""
        return {"outputs": tensors_of(self.outputs)}


@dataclass(frozen=True, slots=True, eq=False)
class MemberStep:
    """A member's step on a batch."""

    member: Member
    batch: TaskBatch
    outputs: TaskOutputs | None

    @property
    def name(self) -> str:
        """See :class:`Recordable`."""
        method, student = type(self.member.method).__name__, getattr(self.member.student, "name", "")
        return f"{method} of {student} (stage {self.member.stage.name})"

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        """See :class:`Recordable`."""
        return (self.member.method.setting.generator,)

    def __call__(self) -> None:
        """See :class:`Recordable`."""
        self.member.step(self.batch, self.outputs)

    def state(self) -> dict[str, list[Tensor]]:
        """See :class:`Recordable`."""
        return self.member.learner.moving()


class Recordings:
    """Which work of a cohort is recorded, over all its epochs.

    Args:
        graphs: makes, for each epoch, the function that makes its graphs.
        note: shows the user what is not recorded, and why.

    Example:
        ``Recordings(partial(CudaGraphs, device), print)``
    """

    def __init__(self, graphs: Callable[[], NewGraph], note: Callable[[str], None]) -> None:
        self._graphs, self._note = graphs, note
        self._refused: set[str] = set()
        self._checked: set[str] = set()

    def epoch(self, teacher: Teacher | None, needs: frozenset[str]) -> "RecordedEpoch":
        """The recordings of an epoch with this teacher."""
        return RecordedEpoch(self, self._graphs(), teacher, needs)

    def allows(self, key: str) -> bool:
        """Whether work may be recorded: nothing spoke against it so far."""
        return key not in self._refused

    def is_checked(self, key: str) -> bool:
        """Whether a recording of this work has agreed with the work itself."""
        return key in self._checked

    def agreed(self, key: str) -> None:
        """Note that a recording agreed with the work."""
        self._checked.add(key)

    def refuse(self, key: str, name: str, reason: str) -> None:
        """Never record this work again; tell the user."""
        self._refused.add(key)
        first = reason.partition("\n")[0]
        self._note(f"{name} runs kernel by kernel, not as a CUDA graph: {first}")


class Replayed:
    """Work that runs as it is at first, then is recorded and replayed.

    Work that cannot be recorded, or whose recording does something else, keeps running as it is.
    """

    def __init__(self, work: Recordable, key: str, new_graph: NewGraph, recordings: Recordings) -> None:
        self._work, self._key = work, key
        self._new_graph, self._recordings = new_graph, recordings
        self._warm = 0
        self._graph: Graph | None = None

    def __call__(self) -> None:
        """Do the work once: as it is, or by its recording."""
        if self._graph is not None:
            self._graph.replay()
        elif self._warm < WARM_UP or not self._recordings.allows(self._key):
            self._warm += 1
            self._work()
        else:
            self._record()

    def _record(self) -> None:
        """Record the work, and do it once."""
        graph = self._new_graph()
        try:
            graph.record(self._work, self._work.generators)
        except RuntimeError as error:
            self._recordings.refuse(self._key, self._work.name, str(error))
            self._work()
            return
        if self._recordings.is_checked(self._key):
            graph.replay()
        elif reason := checked_replay(self._work, graph):
            graph.reset()
            self._recordings.refuse(self._key, self._work.name, reason)
            return
        self._recordings.agreed(self._key)
        self._graph = graph

    def close(self) -> None:
        """Free the recording."""
        if self._graph is not None:
            self._graph.reset()
        self._graph = None


class RecordedEpoch:
    """An epoch's teacher pass and steps, recorded on the tensors of its first batch.

    A batch of another size (the last one may be shorter) is passed on unrecorded. Nothing here refers back to this
    object, so an epoch's tensors are freed when it ends.
    """

    def __init__(
        self, recordings: Recordings, new_graph: NewGraph, teacher: Teacher | None, needs: frozenset[str]
    ) -> None:
        self._recordings, self._new_graph = recordings, new_graph
        self._teacher, self._needs = teacher, needs
        self._batch: TaskBatch | None = None
        self._works: dict[str, Replayed] = {}

    def batches_with_outputs(self, batches: Iterator[TaskBatch]) -> Iterator[BatchAndOutputs]:
        """Yield each batch with the teacher's outputs for it; both are overwritten by the next."""
        outputs: TaskOutputs | None = None
        for batch in batches:
            if self._batch is None:
                self._batch, outputs = batch, self._outputs(batch)
            elif len(batch) == len(self._batch):
                _copy(self._batch, batch)
                self._renew(outputs)
            else:
                yield batch, self._outputs(batch)
                continue
            yield self._batch, outputs

    def step(self, member: Member, batch: TaskBatch, outputs: TaskOutputs | None) -> None:
        """Step a member on a batch; by its recording, if the batch is the recorded one."""
        key = f"{member.run_id}/{member.stage.name}"
        if not member.method.recordable and self._recordings.allows(key):
            self._recordings.refuse(key, MemberStep(member, batch, outputs).name, "its loss waits for the host")
        if member.stage.recipe.stepwise and self._recordings.allows(key):
            self._recordings.refuse(
                key, MemberStep(member, batch, outputs).name, "its learning rate changes in an epoch"
            )
        if batch is not self._batch or not self._recordings.allows(key):
            member.step(batch, outputs)
        else:
            self._replayed(key, lambda: MemberStep(member, batch, outputs))()

    def close(self) -> None:
        """Free all recordings, their inputs and their memory."""
        for work in self._works.values():
            work.close()
        self._works.clear()
        self._batch = None

    def _outputs(self, batch: TaskBatch) -> TaskOutputs | None:
        return None if self._teacher is None else self._teacher.outputs(batch, self._needs)

    def _renew(self, outputs: TaskOutputs | None) -> None:
        """Compute the teacher's outputs for the batch anew, in place."""
        teacher, batch = self._teacher, self._batch
        if teacher is None:
            return
        one_pass = TeacherPass(teacher, self._needs, batch, outputs)
        # A teacher cache reads files on the host, which cannot be recorded.
        if isinstance(teacher, FrozenTeacher):
            self._replayed(one_pass.name, lambda: one_pass)()
        else:
            one_pass()

    def _replayed(self, key: str, work: Callable[[], Recordable]) -> Replayed:
        if key not in self._works:
            self._works[key] = Replayed(work(), key, self._new_graph, self._recordings)
        return self._works[key]


def _copy(kept: TaskBatch | TaskOutputs, new: TaskBatch | TaskOutputs) -> None:
    for old, fresh in zip(tensors_of(kept), tensors_of(new), strict=True):
        old.copy_(fresh)
