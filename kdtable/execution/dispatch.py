"""Give an engine the parts of a request that are ready, until all of it is done or failed.

The store has the state of every run: ready, done or failed. The engine knows only that a part has ended.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import torch

from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.base import Ended, Engine
from kdtable.execution.progress import Progress
from kdtable.execution.recorder import Died, Recorder
from kdtable.execution.store_progress import StoreProgress
from kdtable.execution.work_queue import PAUSE, WorkQueue
from kdtable.execution.worker import fail_unreachable
from kdtable.numerics.layout import fingerprint
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.provenance import provenance
from kdtable.store import Store, Worker
from kdtable.store.database import Lost

#: A run fails when so many workers in a row died with it and none had finished an epoch.
TRIES: Final = 3

#: At most this share of the time is spent on looking at the store.
SHARE: Final = 0.02

#: Seconds that workers have to end when every run is over.
GRACE: Final = 30.0


def dispatch(engine: Engine, assignment: Assignment, progress: Progress, store: Store) -> None:
    """Train an assignment on an engine; return when every run is done or failed.

    A database that is away for less than ten minutes is waited for.

    Raises:
        BadRequest: what every worker would refuse.
    """
    shown = StoreProgress(assignment.planned_runs, store, progress)
    try:
        with Worker(store) as worker:
            driver = _Driver(engine, assignment, progress, store, worker)
            while True:
                try:
                    if not driver.look(shown):
                        break
                    driver.work(until=driver.next_look)
                except Lost:  # the next look repeats what was asked
                    worker.release(worker.claims())
            driver.drain()
        shown.look()
    except BaseException:
        store.database.patience.seconds = 0.0
        engine.cancel()
        raise
    engine.cancel()


class _Driver:
    """What is submitted, what is ready to be, and how often workers died with a run."""

    def __init__(
        self, engine: Engine, assignment: Assignment, progress: Progress, store: Store, worker: Worker
    ) -> None:
        self._engine, self._progress, self._store, self._worker = engine, progress, store, worker
        self._queue = WorkQueue(assignment.planned_runs, store, worker, Progress())
        self._planned = {planned.run.id: planned for planned in assignment.planned_runs}
        needed = frozenset(need for planned in assignment.planned_runs for need in planned.run.needs)
        self._part = replace(assignment, planned_runs=(), needed=needed)
        self._origin = provenance(fingerprint(torch.device("cpu"), cuda_graphs=assignment.cuda_graphs))
        self._ready: deque[tuple[Run, ...]] = deque()
        self._submitted: set[str] = set()
        self._assignments = 0  # submitted and not ended
        # Of each run: deaths without progress, and epochs, attempt and reason at the last one.
        self._deaths: Counter[str] = Counter()
        self._epochs: dict[str, int] = {}
        self._attempts: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self.next_look = 0.0

    def look(self, shown: StoreProgress) -> bool:
        """Look at the store: for what to report, and for runs that became ready; return whether any is unfinished."""
        began = time.monotonic()
        shown.look()
        unfinished = self._queue.unfinished()
        if unfinished:
            fail_unreachable(self._queue, self._store, self._worker, Progress(), self._origin, self._part.keep)
            self._ready = deque(self._engine.parts(self._free()))
        ended = time.monotonic()
        self.next_look = ended + max(PAUSE, (ended - began) / SHARE)
        return unfinished

    def _free(self) -> list[CohortPlan]:
        """Cohorts of runs to submit; those with which workers died too often fail instead."""
        found = []
        for cohort in self._queue.cohorts():
            lost = [run for run in cohort.runs if self._deaths[run.id] >= TRIES]
            for run in lost:
                self._fail(run)
            left = [run for run in cohort.runs if run.id not in self._submitted and run not in lost]
            found += [cohort.only(left)] if left else []
        return found

    def work(self, until: float) -> None:
        """Submit what is ready and take what ends, until a time, or until nothing is left to do without a look."""
        while (left := until - time.monotonic()) > 0:
            while self._ready and self._assignments < self._engine.workers:
                self._submit(self._ready.popleft())
            ended = self._engine.wait(min(left, PAUSE))
            if ended is not None:
                self._take(ended)
                if not self._assignments and not self._ready:
                    return

    def drain(self) -> None:
        """Let workers end whose runs are all over; those that do not within :data:`GRACE` are cancelled after it."""
        end = time.monotonic() + GRACE
        while self._assignments and (left := end - time.monotonic()) > 0:
            if self._engine.wait(min(left, PAUSE)) is not None:
                self._assignments -= 1

    def _submit(self, runs: Iterable[Run]) -> None:
        part = replace(self._part, planned_runs=tuple(self._planned[run.id] for run in runs))
        self._submitted.update(planned.run.id for planned in part.planned_runs)
        self._assignments += 1
        self._engine.submit(part, self._progress)

    def _take(self, ended: Ended) -> None:
        assert ended.assignment is not None
        self._assignments -= 1
        ids = [planned.run.id for planned in ended.assignment.planned_runs]
        self._submitted.difference_update(ids)
        if ended.reason is not None:
            self._progress.note(f"worker {ended.reason}: its runs go on in another one")
            self._count(ids, ended.reason)

    def _count(self, ids: Iterable[str], reason: str) -> None:
        """Count a worker's death against the runs that it had begun, or else all; a new epoch clears a run's count."""
        left = [run for run in self._store.runs(ids) if run.status in ("planned", "running")]
        begun = [run for run in left if run.attempt > self._attempts.get(run.id, 0)]
        trained = self._store.epochs(run.id for run in left)
        for run in begun or left:
            epochs = trained[run.id]
            if epochs > self._epochs.get(run.id, 0):
                self._deaths[run.id] = 0
            self._deaths[run.id] += 1
            self._epochs[run.id], self._attempts[run.id], self._reasons[run.id] = epochs, run.attempt, reason

    def _fail(self, run: Run) -> None:
        if self._worker.claim([run.id], self._origin):
            recorder = Recorder(self._store, self._worker, {run.id: run}, Progress(), self._part.keep)
            recorder.failed(run.id, Died(TRIES, self._reasons[run.id]))
