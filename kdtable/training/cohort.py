"""Cohorts: students that share one batch stream and one teacher pass per batch.

On a CPU each student, and the teacher, is one task on one thread; a pool of threads runs them side by side, and the
teacher is one batch ahead of the students. On a CUDA device every step is recorded once an epoch and replayed. No
number depends on how many members there are or in which order they finish.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Protocol

from kdtable.distributed import ran_out_of_memory
from kdtable.hardware import available_cores
from kdtable.numerics.layout import fix_threads, keep_freed_memory
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.base import Task, TaskBatch, TaskOutputs
from kdtable.training.cuda_graphs import CudaGraph, Graph, Inputs, Steps
from kdtable.training.member import Member
from kdtable.training.step import Diverged
from kdtable.training.teacher import Teacher

BatchAndOutputs = tuple[TaskBatch, TaskOutputs | None]
#: Done for a member, with arguments of which all members get the same.
Work = Callable[..., object]
#: Makes one step of a member on a batch.
Step = Callable[[Member, TaskBatch, TaskOutputs | None], object]


class OutOfMemory(Exception):
    """Memory ran out while several members trained together; their last checkpoints are good."""


class Withdrawn(Exception):
    """Raised by a sink whose results of a member are wanted no more: the member leaves the cohort."""


class Sink(Protocol):
    """Who hears of a cohort's progress, always from the thread that trains it."""

    def stepped(self, members: Sequence[Member], images: int) -> None:
        """Each of these members made a step over ``images`` images."""

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """A member finished an epoch; its state is worth keeping. ``member.done`` tells whether it was the last.

        Raises:
            Withdrawn: the member is to leave the cohort; rank 0's sink decides for all ranks.
        """

    def failed(self, member: Member, error: BaseException) -> None:
        """A member dropped out; the others go on."""


class Cohort:
    """Trains members together.

    Args:
        task: of the run: device, precision, ranks; the batch stream of the stages that name no other task.
        teacher: gives its outputs for a batch of that task; ``None`` if no member's terms use it.
        members: students at any epoch of their stages; each joins when its epoch comes.
        sink: hears of every epoch and failure.
        workers: threads; by default the machine's cores on a CPU, one on an accelerator.
        new_graph: how steps are recorded; by default on CUDA devices, and not where losses are scaled (fp16), since
            a scaler asks the host each step whether to skip it.
    """

    def __init__(
        self,
        task: Task,
        teacher: Teacher | None,
        members: Iterable[Member],
        sink: Sink,
        workers: int | None = None,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        self.task = task
        self.teacher = teacher
        self.members = list(members)
        self.sink = sink
        self.ranks = task.ranks
        self._cost: dict[str, float] = {}  # seconds that each member's last piece of work took
        self.workers = workers or (available_cores() if task.device.type == "cpu" else 1)
        recordable = task.device.type == "cuda" and task.precision.name != "fp16" and task.ranks.size == 1
        self._new_graph = new_graph or (CudaGraph if recordable else None)

    def train(self) -> None:
        """Train until every member is done or has failed.

        Raises:
            OutOfMemory: memory ran out, and there is more than one member: fewer may fit.
            Exception: whatever the teacher, the batches or the sink raise; of several ranks, what a member raises too,
                unless all ranks know of it.
        """
        fix_threads()
        keep_freed_memory()
        pool = ThreadPoolExecutor(self.workers, initializer=fix_threads)
        try:
            while waiting := [member for member in self.members if not member.done]:
                self._epoch(pool, *self._earliest(waiting))
        except (MemoryError, RuntimeError) as error:
            if ran_out_of_memory(error) and len(self.members) > 1:
                raise OutOfMemory(str(error)) from error
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _earliest(waiting: list[Member]) -> tuple[str, int, list[Member]]:
        """The epoch that is furthest behind, and the members at it that share batches and the teacher's pass."""
        first = min(waiting, key=lambda m: (m.stage.name == "main", m.epoch))
        stage, epoch = first.next_epoch
        at_it = [m for m in waiting if m.next_epoch == (stage, epoch) and m.task is first.task]
        return stage, epoch, [m for m in at_it if m.stage.teacher_mode == first.stage.teacher_mode]

    def _epoch(self, pool: ThreadPoolExecutor, stage: str, epoch: int, members: list[Member]) -> None:
        started = time.perf_counter()
        task, teacher_mode = members[0].task, members[0].stage.teacher_mode
        teacher, needs = self._teacher(task, members)
        members = self._sweep(pool, task.sweep(epoch), members, teacher, needs)
        if teacher is not None and teacher_mode == "train":
            teacher = teacher.in_train_mode()
        members = self._each(pool, members, Member.begin_epoch)
        batches_with_outputs, step = self._batches_with_outputs(pool, task.batches(stage, epoch), teacher, needs)
        for batch, outputs in batches_with_outputs:
            members = self._each(pool, members, step, batch, outputs)
            if not members:
                break
            self.sink.stepped(members, batch.whole)
        cohort_size = len(members)
        members = self._evaluate(pool, task, members)
        records: dict[str, EpochRecord] = {}
        members = self._each(pool, members, lambda m: records.update({m.run_id: m.end_epoch(started, cohort_size)}))
        withdrawn = self.ranks.broadcast([m.run_id for m in members if self._withdraws(m, records[m.run_id])])
        self.members = [member for member in self.members if member.run_id not in withdrawn]

    def _teacher(self, task: Task, members: list[Member]) -> tuple[Teacher | None, frozenset[str]]:
        """The teacher as a task runs it, if one of the members uses it, and the features that they share."""
        needs = frozenset().union(*(member.stage.teacher_features for member in members))
        teacher = self.teacher if any(member.stage.uses_teacher for member in members) else None
        if teacher is not None and task is not self.task:
            teacher = teacher.under(task)
        return teacher, needs - task.per_student_features

    def _evaluate(self, pool: ThreadPoolExecutor, task: Task, members: list[Member]) -> list[Member]:
        """Show the test set to all members in one pass, and to the teacher too if anybody's loss is asked for."""
        members = self._each(pool, members, Member.begin_evaluation)
        teacher, needs = self._teacher(task, [member for member in members if member.tests_loss])
        batches_with_outputs = _one_ahead(pool, task.test_batches(), teacher, needs)
        with closing(batches_with_outputs):
            for batch, outputs in batches_with_outputs:
                if not members:
                    break
                members = self._each(pool, members, Member.evaluate, batch, outputs)
        return members

    def _withdraws(self, member: Member, record: EpochRecord) -> bool:
        """Tell of an epoch; whether the sink wants no more of the member."""
        try:
            self.sink.epoch_done(member, record)
        except Withdrawn:
            return True
        return False

    def _sweep(
        self,
        pool: ThreadPoolExecutor,
        batches: Iterator[TaskBatch],
        members: list[Member],
        teacher: Teacher | None,
        needs: frozenset[str],
    ) -> list[Member]:
        """Show the training set to the members whose methods ask for it, in one pass for all of them."""
        limits = {member.run_id: limit for member in members if (limit := member.sweep_limit) is not None}
        if not limits:
            return members
        sweepers = self._each(pool, [m for m in members if m.run_id in limits], Member.begin_sweep)
        shown, before = 0, 0  # images in all, and in all batches but the last
        batches_with_outputs = _one_ahead(pool, batches, teacher, needs)
        with closing(batches_with_outputs):
            for batch, outputs in batches_with_outputs:
                watching = [m for m in sweepers if m in self.members and before <= limits[m.run_id]]
                if not watching:
                    break
                self._each(pool, watching, Member.observe, batch, outputs)
                shown, before = shown + batch.whole, shown
        self._each(pool, [m for m in sweepers if m in self.members], lambda m: m.method.end_sweep())
        return [m for m in members if m in self.members]

    def _batches_with_outputs(
        self, pool: ThreadPoolExecutor, batches: Iterator[TaskBatch], teacher: Teacher | None, needs: frozenset[str]
    ) -> tuple[Iterator[BatchAndOutputs], Step]:
        """The epoch's batches with the teacher's outputs, and how a member steps on one of them."""
        if self._new_graph is None:
            return _one_ahead(pool, batches, teacher, needs), _step
        inputs = Inputs(teacher, needs, self._new_graph)
        return inputs.batches_with_outputs(batches), Steps(inputs, self._new_graph).step

    def _each(self, pool: ThreadPoolExecutor, members: list[Member], work: Work, *arguments: object) -> list[Member]:
        """Run ``work`` for every member; those that raise are dropped and reported.

        Raises:
            OutOfMemory: one of several members ran out of memory, which may be the cohort's fault.
        """
        if self.ranks.size == 1:
            errors = self._side_by_side(pool, members, work, *arguments)
        else:
            errors = self._in_turn(members, work, *arguments)
        for member in [member for member in members if member.run_id in errors]:
            error = errors[member.run_id]
            if ran_out_of_memory(error) and len(self.members) > 1:
                raise OutOfMemory(str(error)) from error
            self.members.remove(member)
            self.sink.failed(member, error)
        return [member for member in members if member.run_id not in errors]

    def _side_by_side(
        self, pool: ThreadPoolExecutor, members: list[Member], work: Work, *arguments: object
    ) -> dict[str, BaseException]:
        """Run ``work`` in the pool; the errors of those that raise, by run id."""
        # The longest first, so that no core waits for one that began late. Order changes no number.
        order = sorted(members, key=lambda member: -self._cost.get(member.run_id, 0.0))
        jobs = {member.run_id: pool.submit(self._timed, work, member, *arguments) for member in order}
        wait(jobs.values())
        return {run_id: error for run_id, job in jobs.items() if (error := job.exception()) is not None}

    @staticmethod
    def _in_turn(members: list[Member], work: Work, *arguments: object) -> dict[str, BaseException]:
        """Run ``work`` in one order on all ranks; losses that are not finite, of which all ranks know alike."""
        errors: dict[str, BaseException] = {}
        for member in members:
            try:
                work(member, *arguments)
            except Diverged as error:
                errors[member.run_id] = error
        return errors

    def _timed(self, work: Work, member: Member, *arguments: object) -> None:
        started = time.perf_counter()
        work(member, *arguments)
        self._cost[member.run_id] = time.perf_counter() - started


def _step(member: Member, batch: TaskBatch, outputs: TaskOutputs | None) -> None:
    member.step(batch, outputs)


def _one_ahead(
    pool: ThreadPoolExecutor, batches: Iterator[TaskBatch], teacher: Teacher | None, needs: frozenset[str]
) -> Generator[BatchAndOutputs]:
    """The batches with the teacher's outputs, of which the next is always in the making, in the pool."""

    def following() -> BatchAndOutputs | None:
        batch = next(batches, None)
        if batch is None:
            return None
        return batch, None if teacher is None else teacher.outputs(batch, needs)

    coming: Future[BatchAndOutputs | None] = pool.submit(following)
    try:
        while (batch_and_outputs := coming.result()) is not None:
            coming = pool.submit(following)
            yield batch_and_outputs
    finally:  # whoever asks for the next pass finds the images free to be decoded
        if not coming.cancel():  # what a pool that was shut down had cancelled would be waited for without end
            wait([coming])
        if isinstance(batches, Generator):
            batches.close()
