"""Cohorts: students that share one batch stream and one teacher pass per batch.

On a CPU each student, and the teacher, is one task on one thread; a pool of threads runs them side by side, and the
teacher is one batch ahead of the students. On a CUDA device every step is recorded once an epoch and replayed. No
number depends on how many members there are or in which order they finish.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import Protocol

from kdtable.data.stream import Batch
from kdtable.distributed import NO_MEMORY, failure, ran_out_of_memory
from kdtable.errors import BadRequest
from kdtable.hardware import available_cores
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import fix_threads, keep_freed_memory
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.classification import Classification
from kdtable.training.cuda_graphs import (
    CudaGraph,
    Graph,
    Inputs,
    Steps,
)
from kdtable.training.member import Member
from kdtable.training.teacher import Teacher

BatchAndOutputs = tuple[Batch, Outputs | None]
Work = Callable[[Member], object]
#: Makes one step of a member on a lesson.
Step = Callable[[Member, Batch, Outputs | None], object]


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
            Withdrawn: the member is to leave the cohort.
        """

    def failed(self, member: Member, error: BaseException) -> None:
        """A member dropped out; the others go on."""


class Cohort:
    """Trains members together.

    Args:
        task: the batch stream that all members share.
        teacher: gives its outputs for a batch; ``None`` if no member's terms use it.
        members: students at any epoch of their stages; each joins when its epoch comes.
        sink: hears of every epoch and failure.
        workers: threads; by default the machine's cores on a CPU, one on an accelerator.
        new_graph: how steps are recorded; by default on CUDA devices, and not where losses are scaled (fp16), since
            a scaler asks the host each step whether to skip it.
    """

    def __init__(
        self,
        task: Classification,
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
        """
        fix_threads()
        keep_freed_memory()
        pool = ThreadPoolExecutor(self.workers, initializer=fix_threads)
        try:
            while waiting := [member for member in self.members if not member.done]:
                self._epoch(pool, *self._earliest(waiting))
        except (MemoryError, RuntimeError) as error:  # of the teacher or the batches
            if ran_out_of_memory(error) and len(self.members) > 1:
                raise OutOfMemory(str(error)) from error
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _earliest(waiting: list[Member]) -> tuple[str, int, list[Member]]:
        """The epoch that is furthest behind, and the members that are at it with the teacher in one mode."""
        first = min(waiting, key=lambda m: (m.stage.name == "main", m.epoch))
        stage, epoch = first.next_epoch
        at_it = [m for m in waiting if m.next_epoch == (stage, epoch)]
        return stage, epoch, [m for m in at_it if m.stage.teacher_mode == first.stage.teacher_mode]

    def _epoch(self, pool: ThreadPoolExecutor, stage: str, epoch: int, members: list[Member]) -> None:
        started = time.perf_counter()
        needs = frozenset().union(*(m.stage.teacher_features for m in members))
        teacher = self.teacher if any(m.stage.uses_teacher for m in members) else None
        members = self._sweep(pool, epoch, members, teacher, needs)
        if teacher is not None and members[0].stage.teacher_mode == "train":
            teacher = teacher.in_train_mode()
        members = self._each(pool, members, Member.begin_epoch)
        batches_with_outputs, step = self._batches_with_outputs(pool, self.task.batches(stage, epoch), teacher, needs)
        for batch, teacher_outputs in self._for_all(batches_with_outputs):
            if self.ranks.size == 1:
                members = self._each(pool, members, partial(_apply, step, batch, teacher_outputs))
            else:
                members = self._each(pool, members, partial(_learn, batch, teacher_outputs))
                members = self._each(pool, members, Member.apply)
            if not members:
                break
            self.sink.stepped(members, batch.whole)
        cohort_size = len(members)
        records: dict[str, EpochRecord] = {}
        members = self._evaluate(pool, members)
        members = self._each(pool, members, lambda m: records.update({m.run_id: m.end_epoch(started, cohort_size)}))
        for member in members:
            if any(self.ranks.worst([self.ranks.agreed(partial(self._withdraws, member, records[member.run_id]))])):
                self.members.remove(member)

    def _evaluate(self, pool: ThreadPoolExecutor, members: list[Member]) -> list[Member]:
        """Show the test images to all members in one pass, and to the teacher too if anybody's loss is asked for."""
        members = self._each(pool, members, Member.begin_evaluation)
        asked = [member.stage for member in members if member.tests_loss]
        teacher = self.teacher if any(stage.uses_teacher for stage in asked) else None
        needs = frozenset().union(*(stage.teacher_features for stage in asked))
        batches_with_outputs = _one_ahead(pool, self.task.test_batches(), teacher, needs)
        with closing(batches_with_outputs):
            for batch, teacher_outputs in self._for_all(batches_with_outputs):
                if members:
                    members = self._each(pool, members, partial(_evaluate_member, batch, teacher_outputs))
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
        epoch: int,
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
        batches_with_outputs = _one_ahead(pool, self.task.sweep(epoch), teacher, needs)
        with closing(batches_with_outputs):
            for batch, teacher_outputs in self._for_all(batches_with_outputs):
                watching = [m for m in sweepers if m in self.members and before <= limits[m.run_id]]
                if not watching:
                    break
                self._each(pool, watching, partial(_watch, batch, teacher_outputs))
                shown, before = shown + batch.whole, shown
        self._each(pool, [m for m in sweepers if m in self.members], Member.end_sweep)
        return [m for m in members if m in self.members]

    def _batches_with_outputs(
        self, pool: ThreadPoolExecutor, batches: Iterator[Batch], teacher: Teacher | None, needs: frozenset[str]
    ) -> tuple[Iterator[BatchAndOutputs], Step]:
        """The epoch's batches with the teacher's outputs, and how a member steps on one of them."""
        if self._new_graph is None:
            return _one_ahead(pool, batches, teacher, needs), _step
        inputs = Inputs(teacher, needs, self._new_graph)
        return inputs.batches_with_outputs(batches), Steps(inputs, self._new_graph).step

    def _each(self, pool: ThreadPoolExecutor, members: list[Member], work: Work) -> list[Member]:
        """Run ``work`` for every member side by side; those that raise are dropped and reported.

        Raises:
            OutOfMemory: one of several members ran out of memory, which may be the company's fault.
        """
        if self.ranks.size > 1:
            return self._each_in_turn(members, work)
        # The longest first, so that no core waits for one that began late. Order changes no number.
        order = sorted(members, key=lambda member: -self._cost.get(member.run_id, 0.0))
        jobs = {member.run_id: pool.submit(self._timed, work, member) for member in order}
        wait(jobs.values())
        alive = []
        for member in members:
            error = jobs[member.run_id].exception()
            if error is None:
                alive.append(member)
            elif ran_out_of_memory(error) and len(self.members) > 1:
                raise OutOfMemory(str(error)) from error
            else:
                self.members.remove(member)
                self.sink.failed(member, error)
        return alive

    def _each_in_turn(self, members: list[Member], work: Work) -> list[Member]:
        """The same where several processes train together: one member after the other, in one order on all of them.

        What one process cannot do, none goes on with.
        """
        errors: dict[str, Exception] = {}
        for member in members:
            try:
                self.ranks.agreed(partial(work, member))
            except BadRequest:
                raise
            except Exception as error:
                if ran_out_of_memory(error) and len(self.members) > 1:
                    raise OutOfMemory(str(error)) from error
                errors[member.run_id] = error
        for member in [member for member in members if member.run_id in errors]:
            self.members.remove(member)
            self.sink.failed(member, errors[member.run_id])
        return [member for member in members if member.run_id not in errors]

    def _reason(self, error: BaseException | None) -> str:
        """What a process says of a failure that another one may not know of."""
        return self.ranks.first_text("" if error is None else f"{type(error).__name__}: {error}")

    def _for_all(self, batches_with_outputs: Iterator[BatchAndOutputs]) -> Iterator[BatchAndOutputs]:
        """The lessons, which end for all processes when one of them cannot have its own.

        Raises:
            RuntimeError: another process could not; what it was is said.
        """
        while True:
            trouble: Exception | None = None
            batch_and_outputs: BatchAndOutputs | None = None
            try:
                batch_and_outputs = next(batches_with_outputs, None)
            except Exception as error:
                trouble = error
            (code,) = self.ranks.worst([failure(trouble)])
            if code:
                reason = self._reason(trouble)
                if code == NO_MEMORY and len(self.members) > 1:
                    raise OutOfMemory(reason) from trouble
                raise trouble or RuntimeError(f"another process of this run failed: {reason}")
            if batch_and_outputs is None:
                return
            yield batch_and_outputs

    def _timed(self, work: Work, member: Member) -> None:
        started = time.perf_counter()
        work(member)
        self._cost[member.run_id] = time.perf_counter() - started


def _step(member: Member, batch: Batch, teacher_outputs: Outputs | None) -> None:
    member.step(batch, teacher_outputs)


def _learn(batch: Batch, teacher_outputs: Outputs | None, member: Member) -> None:
    member.learn(batch, teacher_outputs)


def _apply(step: Step, batch: Batch, teacher_outputs: Outputs | None, member: Member) -> None:
    step(member, batch, teacher_outputs)


def _watch(batch: Batch, teacher_outputs: Outputs | None, member: Member) -> None:
    member.observe(batch, teacher_outputs)


def _evaluate_member(batch: Batch, teacher_outputs: Outputs | None, member: Member) -> None:
    member.evaluate(batch, teacher_outputs)


def _one_ahead(
    pool: ThreadPoolExecutor, batches: Iterator[Batch], teacher: Teacher | None, needs: frozenset[str]
) -> Generator[BatchAndOutputs]:
    """Lessons of which the next is always in the making, in the pool."""

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
