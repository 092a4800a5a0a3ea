"""Train cohorts: students that share one batch stream and one teacher pass per batch.

On a CPU a thread pool runs the students side by side, each on one thread; the teacher runs one batch ahead of them. On
a CUDA device steps can be recorded once an epoch and replayed. No result depends on the cohort size or on the order in
which members finish.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Protocol

from kdtable.data.stream import PartName
from kdtable.distributed import ran_out_of_memory
from kdtable.hardware import available_cores
from kdtable.numerics.layout import begin_thread, fix_threads, keep_freed_memory, on_device
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.base import Task, TaskBatch, TaskOutputs
from kdtable.training.member import Member
from kdtable.training.recording import Recordings
from kdtable.training.step import Diverged
from kdtable.training.teacher import Teacher

BatchAndOutputs = tuple[TaskBatch, TaskOutputs | None]
#: Work on one member; all members get the same further arguments.
Work = Callable[..., object]


class OutOfMemory(Exception):
    """Memory ran out while several members trained at once; their last checkpoints are valid."""


class Withdrawn(Exception):
    """A sink raises this to remove a member from its cohort, for example when its claim was lost."""


class Sink(Protocol):
    """Receives a cohort's progress, always from the thread that trains it."""

    def stepped(self, members: Sequence[Member], images: int) -> None:
        """Note that each of these members made a step over ``images`` images."""

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """Keep the state of a member that finished an epoch; ``member.done`` tells whether it was the last.

        Raises:
            Withdrawn: the member leaves the cohort; rank 0's sink decides for all ranks.
        """

    def failed(self, run_id: str, error: BaseException) -> None:
        """Note that a member failed; the others continue."""


class Cohort:
    """Trains members on shared batches.

    Args:
        task: the run's task: device, precision, ranks, and the batch stream of the stages that name no other task.
        teacher: returns the teacher's outputs for a batch of that task; ``None`` if no member's terms use it.
        members: students at any epoch of their stages; each joins at its next epoch.
        sink: receives every epoch and failure.
        workers: number of threads; by default the available cores on a CPU, one on an accelerator.
        recordings: records steps as graphs and replays them; by default no step is recorded.

    Example:
        ``Cohort(task, FrozenTeacher(network, task), [member], sink).train()``
    """

    def __init__(
        self,
        task: Task,
        teacher: Teacher | None,
        members: Iterable[Member],
        sink: Sink,
        workers: int | None = None,
        recordings: Recordings | None = None,
    ) -> None:
        self.task = task
        self.teacher = teacher
        self.members = list(members)
        self.sink = sink
        self.ranks = task.ranks
        # CPU seconds of each member's last piece of work, and of all in this epoch, by run id
        self._cost: dict[str, float] = {}
        self._spent: defaultdict[str, float] = defaultdict(float)
        self.workers = workers or (available_cores() if task.device.type == "cpu" else 1)
        self._recordings = recordings

    def train(self) -> None:
        """Train until every member is done or has failed.

        Raises:
            OutOfMemory: memory ran out with more than one member: fewer may fit.
            Exception: what the teacher, the batches or the sink raise; with several ranks also what a member raises,
                except `Diverged`, which every rank raises alike.
        """
        fix_threads()
        keep_freed_memory()
        pool = ThreadPoolExecutor(self.workers, initializer=begin_thread, initargs=(self.task.device,))
        try:
            with on_device(self.task.device):
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
        """Stage name and number of the earliest epoch, and its members that share batches and the teacher pass."""
        first = min(waiting, key=lambda m: (m.stage.name == "main", m.epoch))
        stage, epoch = first.next_epoch
        members = [m for m in waiting if m.next_epoch == (stage, epoch) and m.task is first.task]
        return stage, epoch, [m for m in members if m.stage.teacher_mode == first.stage.teacher_mode]

    def _epoch(self, pool: ThreadPoolExecutor, stage: str, epoch: int, members: list[Member]) -> None:
        started = time.perf_counter()
        self._spent.clear()
        task, teacher_mode = members[0].task, members[0].stage.teacher_mode
        teacher, needs = self._teacher(task, members)
        members = self._sweep(pool, task.sweep(epoch), members, teacher, needs)
        if teacher is not None and teacher_mode == "train":
            teacher = teacher.in_train_mode()
        members = self._each(pool, members, Member.begin_epoch)
        members = self._train_on(pool, task.batches(stage, epoch), members, teacher, needs)
        cohort_size = len(members)
        members = self._evaluate(pool, task, members)
        records: dict[str, EpochRecord] = {}

        def end(member: Member) -> None:
            spent = self._spent[member.run_id] if self._own_cpu_time else None
            records[member.run_id] = member.end_epoch(started, cohort_size, spent)

        members = self._each(pool, members, end)
        withdrawn = self.ranks.broadcast([m.run_id for m in members if self._withdraws(m, records[m.run_id])])
        self.members = [member for member in self.members if member.run_id not in withdrawn]

    def _teacher(self, task: Task, members: list[Member]) -> tuple[Teacher | None, frozenset[str]]:
        """The teacher under a task, if a member uses it, and the teacher features that the members share."""
        needs = frozenset().union(*(member.stage.teacher_features for member in members))
        used = any(member.stage.uses_teacher for member in members)
        return self._teacher_under(task) if used else None, task.shared_features(needs)

    def _teacher_under(self, task: Task) -> Teacher | None:
        return self.teacher if self.teacher is None or task is self.task else self.teacher.under(task)

    def _evaluate(self, pool: ThreadPoolExecutor, task: Task, members: list[Member]) -> list[Member]:
        """Evaluate all members in one pass, with one of the teacher if an evaluation reads it.

        That is a pass over the test set. Where training images are held out, it is one over these, and the test set
        follows once, for members that finish.
        """
        members = self._each(pool, members, Member.begin_evaluation)
        teacher, needs = self._teacher(task, [member for member in members if member.tests_loss])
        members = self._pass(pool, task, members, task.watched, teacher, needs)
        if task.watched == "test":
            return members
        members = self._each(pool, members, Member.end_validation)
        last = self._each(pool, [member for member in members if member.last_of_main], Member.begin_test)
        if last:
            last = self._pass(pool, task, last, "test", None, frozenset())
            self._each(pool, last, Member.end_test)
        return [member for member in members if member in self.members]

    def _pass(
        self,
        pool: ThreadPoolExecutor,
        task: Task,
        members: list[Member],
        part: PartName,
        teacher: Teacher | None,
        needs: frozenset[str],
    ) -> list[Member]:
        """Pass a part through all members, with the teacher's outputs if they are given or a closing meter reads them.

        Returns the members that did not fail.
        """
        if any(member.closing_with_teacher for member in members):
            teacher = self._teacher_under(task)
        batches_with_outputs = _one_ahead(pool, task.evaluation_batches(part), teacher, needs)
        with closing(batches_with_outputs):
            for batch, outputs in batches_with_outputs:
                if not members:
                    break
                members = self._each(pool, members, Member.evaluate, batch, outputs)
        return members

    def _withdraws(self, member: Member, record: EpochRecord) -> bool:
        """Report an epoch to the sink; return whether the sink withdraws the member."""
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
        """Show the training set, in one shared pass, to the members whose methods ask for a sweep."""
        limits = {member.run_id: limit for member in members if (limit := member.sweep_limit) is not None}
        if not limits:
            return members
        sweepers = self._each(pool, [m for m in members if m.run_id in limits], Member.begin_sweep)
        shown, before = 0, 0  # images so far, with and without the last batch
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

    def _train_on(
        self,
        pool: ThreadPoolExecutor,
        batches: Iterator[TaskBatch],
        members: list[Member],
        teacher: Teacher | None,
        needs: frozenset[str],
    ) -> list[Member]:
        """Step all members on each of an epoch's batches; return those that did not fail."""
        if self._recordings is None:
            return self._steps(pool, members, _step, _one_ahead(pool, batches, teacher, needs))
        with closing(self._recordings.epoch(teacher, needs)) as recorded:
            return self._steps(pool, members, recorded.step, recorded.batches_with_outputs(batches))

    def _steps(
        self, pool: ThreadPoolExecutor, members: list[Member], step: Work, pairs: Iterator[BatchAndOutputs]
    ) -> list[Member]:
        for batch, outputs in pairs:
            members = self._each(pool, members, step, batch, outputs)
            if not members:
                break
            self.sink.stepped(members, batch.whole)
            if all(member.learner.finished for member in members):
                break
        return members

    def _each(self, pool: ThreadPoolExecutor, members: list[Member], work: Work, *arguments: object) -> list[Member]:
        """Run ``work`` for every member; remove and report those that raise. Return the others.

        Raises:
            OutOfMemory: one of several members ran out of memory; a smaller cohort may fit.
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
            self.sink.failed(member.run_id, error)
        return [member for member in members if member.run_id not in errors]

    def _side_by_side(
        self, pool: ThreadPoolExecutor, members: list[Member], work: Work, *arguments: object
    ) -> dict[str, BaseException]:
        """Run ``work`` in the pool; return errors by run id."""
        # Longest first, so that no core waits for one that began late. The order changes no result.
        order = sorted(members, key=lambda member: -self._cost.get(member.run_id, 0.0))
        jobs = {member.run_id: pool.submit(self._timed, work, member, *arguments) for member in order}
        wait(jobs.values())
        return {run_id: error for run_id, job in jobs.items() if (error := job.exception()) is not None}

    @staticmethod
    def _in_turn(members: list[Member], work: Work, *arguments: object) -> dict[str, BaseException]:
        """Run ``work`` in the same order on all ranks; return `Diverged` errors, which every rank raises alike."""
        errors: dict[str, BaseException] = {}
        for member in members:
            try:
                work(member, *arguments)
            except Diverged as error:
                errors[member.run_id] = error
        return errors

    def _timed(self, work: Work, member: Member, *arguments: object) -> None:
        started = time.thread_time()
        work(member, *arguments)
        self._cost[member.run_id] = seconds = time.thread_time() - started
        self._spent[member.run_id] += seconds

    @property
    def _own_cpu_time(self) -> bool:
        """Whether a member's work is all done by the thread that it is given to."""
        return self.task.device.type == "cpu" and self.ranks.size == 1


def _step(member: Member, batch: TaskBatch, outputs: TaskOutputs | None) -> None:
    member.step(batch, outputs)


def _one_ahead(
    pool: ThreadPoolExecutor, batches: Iterator[TaskBatch], teacher: Teacher | None, needs: frozenset[str]
) -> Generator[BatchAndOutputs]:
    """Yield batches with the teacher's outputs while the pool prepares the next pair."""

    def following() -> BatchAndOutputs | None:
        batch = next(batches, None)
        if batch is None:
            return None
        return batch, None if teacher is None else teacher.outputs(batch, needs)

    upcoming: Future[BatchAndOutputs | None] = pool.submit(following)
    try:
        while (batch_and_outputs := upcoming.result()) is not None:
            upcoming = pool.submit(following)
            yield batch_and_outputs
    finally:  # the next pass needs the decoder: end this one first
        if not upcoming.cancel():  # waiting for a future that a closed pool cancelled would never end
            wait([upcoming])
        if isinstance(batches, Generator):
            batches.close()
