"""Cohorts: students that share one batch stream and one teacher pass per batch.

Each student, and the teacher, is one task on one thread; a pool of threads runs them side by side, and the teacher
is one batch ahead of the students. No number depends on how many there are or in which order they finish.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol

import torch
from torch import nn

from kdtable.data.stream import Batch
from kdtable.models.outputs import Outputs
from kdtable.training.member import EpochRecord, Member
from kdtable.training.numerics import fix_threads
from kdtable.training.task import Classification

Taught = tuple[Batch, Outputs | None]
Work = Callable[[Member], object]


class Sink(Protocol):
    """Who hears of a cohort's progress, always from the thread that trains it."""

    def stepped(self, images: int) -> None:
        """A step over ``images`` images was made by every active member."""

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """A member finished an epoch; its state is worth keeping. ``member.done`` tells whether it was the last."""

    def failed(self, member: Member, error: BaseException) -> None:
        """A member dropped out; the others go on."""


class Cohort:
    """Trains members together.

    Args:
        task: the batch stream that all members share.
        teacher: in eval mode, on the device; ``None`` if no member's terms use it.
        members: students at any epoch of their stages; each joins when its epoch comes.
        sink: hears of every epoch and failure.
        workers: threads; by default the machine's cores on a CPU, one on an accelerator.
    """

    def __init__(
        self,
        task: Classification,
        teacher: nn.Module | None,
        members: Iterable[Member],
        sink: Sink,
        workers: int | None = None,
    ) -> None:
        self.task = task
        self.teacher = teacher
        self.members = list(members)
        self.sink = sink
        self._cost: dict[str, float] = {}  # seconds that each member's last piece of work took
        self.workers = workers or (available_cores() if task.device.type == "cpu" else 1)

    def train(self) -> None:
        """Train until every member is done or has failed."""
        fix_threads()
        pool = ThreadPoolExecutor(self.workers, initializer=fix_threads)
        try:
            while waiting := [member for member in self.members if not member.done]:
                self._epoch(pool, *self._earliest(waiting))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _earliest(waiting: list[Member]) -> tuple[str, int, list[Member]]:
        """The epoch that is furthest behind, and the members that are at it."""
        first = min(waiting, key=lambda m: (m.stage.name == "main", m.epoch))
        stage, epoch = first.next_epoch
        return stage, epoch, [m for m in waiting if m.next_epoch == (stage, epoch)]

    def _epoch(self, pool: ThreadPoolExecutor, stage: str, epoch: int, members: list[Member]) -> None:
        started = time.perf_counter()
        needs = frozenset().union(*(m.stage.teacher_features for m in members))
        teacher = self.teacher if any(m.stage.uses_teacher for m in members) else None
        members = self._each(pool, members, Member.begin_epoch)
        batches = self.task.batches(stage, epoch)
        taught = pool.submit(self._teach, batches, teacher, needs).result()
        while taught is not None and members:
            following = pool.submit(self._teach, batches, teacher, needs)
            members = self._each(pool, members, _step_on(*taught))
            self.sink.stepped(len(taught[0].labels) * len(members))
            taught = following.result()
        company = len(members)
        records: dict[str, EpochRecord] = {}
        members = self._each(pool, members, lambda m: records.update({m.run_id: m.end_epoch(started, company)}))
        for member in members:
            self.sink.epoch_done(member, records[member.run_id])

    def _teach(self, batches: Iterator[Batch], teacher: nn.Module | None, needs: frozenset[str]) -> Taught | None:
        """The next batch and the teacher's outputs for it; ``None`` after the last."""
        batch = next(batches, None)
        if batch is None or teacher is None:
            return None if batch is None else (batch, None)
        with torch.no_grad():  # not inference mode: students save these tensors for their backward pass
            return batch, self.task.run(teacher, batch, needs)

    def _each(self, pool: ThreadPoolExecutor, members: list[Member], work: Work) -> list[Member]:
        """Run ``work`` for every member side by side; those that raise are dropped and reported."""
        # The longest first, so that no core waits for one that began late. Order changes no number.
        order = sorted(members, key=lambda member: -self._cost.get(member.run_id, 0.0))
        jobs = {member.run_id: pool.submit(self._timed, work, member) for member in order}
        wait(jobs.values())
        alive = []
        for member in members:
            error = jobs[member.run_id].exception()
            if error is None:
                alive.append(member)
            else:
                self.members.remove(member)
                self.sink.failed(member, error)
        return alive

    def _timed(self, work: Work, member: Member) -> None:
        started = time.perf_counter()
        work(member)
        self._cost[member.run_id] = time.perf_counter() - started


def _step_on(batch: Batch, teacher: Outputs | None) -> Work:
    return lambda member: member.step(batch, teacher)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
