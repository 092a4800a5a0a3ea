"""A worker: trains planned runs of a grid, one cohort after another, in this process."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import torch

from kdtable import data
from kdtable.data.protocols import Images
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.execution.assignment import Assignment
from kdtable.execution.devices import DeviceSlot
from kdtable.execution.memory import fitting
from kdtable.execution.progress import Progress
from kdtable.execution.recorder import Recorder, Unreachable
from kdtable.execution.train_cohort import RecordingKeeper, train_in_parts
from kdtable.execution.work_queue import WorkQueue
from kdtable.numerics import precision
from kdtable.numerics.layout import fingerprint, fix_threads
from kdtable.numerics.precision import Precision
from kdtable.planning.cohorts import PlannedRun
from kdtable.provenance import provenance
from kdtable.store.claims import Worker
from kdtable.store.results import Store


def train_planned(slot: DeviceSlot, assignment: Assignment, progress: Progress) -> None:
    """The part of one of several processes in :func:`execute`: train what is planned, with a store of its own.

    Raises:
        BadRequest: as in :func:`execute`.
    """
    fix_threads()
    planned_runs = assignment.planned_runs
    chosen = precision.choose(planned_runs[0].run.precision, torch.device(slot.device))
    specs = {planned.run.data.key: planned.run.data for planned in planned_runs if planned.not_applicable is None}
    sets = {key: data.load(spec, assignment.data_root) for key, spec in specs.items()}
    with closing(Store(assignment.results, assignment.url)) as store:
        train_missing(planned_runs, store, sets, chosen, progress, assignment.keep, slot.sharers)


def train_missing(
    planned_runs: Sequence[PlannedRun],
    store: Store,
    sets: Mapping[str, Images],
    chosen: Precision,
    progress: Progress,
    keep: str = "last",
    sharers: int = 1,
    ranks: Ranks = SINGLE_PROCESS,
) -> None:
    """Train planned runs of ``cells`` until each of them is done or has failed, here or elsewhere.

    Several processes may do so on one store. Each claims a cohort when it begins to train it, so that the others
    can take the next ones, and at the end waits for what they still train: if one of them dies, its runs are
    continued here. What failed is not tried again.
    """
    origin = provenance(fingerprint(chosen.device))
    needed = {need for planned in planned_runs for need in planned.run.needs}
    with Worker(store) as worker:
        queue = WorkQueue(planned_runs, store, worker, progress)
        while queue.unfinished():
            _fail_unreachable(queue, store, worker, progress, origin, keep)
            free = queue.cohorts()
            if not free:
                queue.wait()
                continue
            first, *parts = fitting(free[0], chosen.device, max(sharers, ranks.size))
            if cohort := queue.claim(first, origin):
                teacher = cohort.teacher.network if cohort.teacher else None
                progress.cohort(len(parts) + len(free) - 1, list(cohort.runs), teacher)
                ranks.broadcast(cohort)
                keeper = RecordingKeeper(store, worker, {run.id: run for run in cohort.runs}, progress, keep, needed)
                try:
                    train_in_parts(cohort, keeper, store.folder, sets[cohort.runs[0].data.key], chosen, ranks)
                finally:
                    worker.release(run.id for run in cohort.runs)


def _fail_unreachable(
    queue: WorkQueue, store: Store, worker: Worker, progress: Progress, origin: Mapping[str, Any], keep: str
) -> None:
    """Mark as failed what cannot begin any more, with the reason of the run that it needs."""
    for run, need in queue.unreachable():
        if worker.claim([run.id], origin):
            (first,) = store.runs([need])
            what = f"{first.row} of {first.student}, seed {first.seed}"
            Recorder(store, worker, {run.id: run}, progress, keep).fail(run.id, Unreachable(what, str(first.reason)))
