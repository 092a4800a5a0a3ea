"""A worker: train planned runs of a grid, one cohort after another, in this process."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtable import data
from kdtable.data.sets import Images
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.execution.assignment import Assignment
from kdtable.execution.memory import fitting
from kdtable.execution.progress import Progress
from kdtable.execution.recorder import Recorder, Unreachable
from kdtable.execution.shared_recorder import recorder_of
from kdtable.execution.train_cohort import train_in_parts
from kdtable.execution.work_queue import WorkQueue
from kdtable.numerics import precision
from kdtable.numerics.layout import fingerprint, fix_threads
from kdtable.numerics.precision import choose_device
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.provenance import provenance, source_files
from kdtable.store.claims import Worker
from kdtable.store.database import Lost
from kdtable.store.patience import WAIT, Patience
from kdtable.store.results import Store
from kdtable.store.shared import bring_student


def train_assignment(
    assignment: Assignment,
    progress: Progress,
    device: str = "auto",
    sharers: int = 1,
    ranks: Ranks = SINGLE_PROCESS,
    sets: Mapping[str, Images] | None = None,
) -> None:
    """Train the missing runs of an assignment, until each is done or failed, here or in another process.

    Several workers may share one store. Each claims a cohort when it begins to train it; others take the next ones. At
    the end each waits for the others: if one dies, its runs are continued here. Failed runs are not retried. A database
    that is away for less than ten minutes is waited for. With
    ``assignment.patience`` a worker may leave runs to others, or to a later worker.

    Args:
        assignment: the runs to train.
        progress: receives events.
        device: name of a device, as on the command line.
        sharers: number of processes that share the device, this one included.
        ranks: ranks that train every run together; this process is rank 0.
        sets: the images of all data sets by ``split_key``, where they are loaded already.

    Raises:
        BadRequest: the data cannot be loaded, a precision does not fit the device, or the store cannot be used.
    """
    fix_threads()
    runs = [planned.run for planned in assignment.planned_runs if planned.not_applicable is None]
    chosen = precision.choose(runs[0].precision, choose_device(device))
    images = load_all(runs, assignment.data_root) if sets is None else sets
    origin = provenance(fingerprint(chosen.device, cuda_graphs=assignment.cuda_graphs))
    patience = Patience(WAIT, progress.note)
    with closing(Store(assignment.results, assignment.url, patience=patience)) as store, Worker(store) as worker:
        store.record_code(source_files())
        queue = WorkQueue(assignment.planned_runs, store, worker, progress)
        turn = _Turn(assignment, queue, store, worker, progress, chosen, max(sharers, ranks.size), ranks, images)
        going_on = True
        while going_on:
            try:
                going_on = turn.take(origin)
            except Lost:
                if ranks.size > 1:  # the others would wait for this one
                    raise
                worker.release(worker.claims())  # even those of whose claim no word came


@dataclass(frozen=True)
class _Turn:
    """What a worker does again and again: find a cohort that is free, claim it, train it."""

    assignment: Assignment
    queue: WorkQueue
    store: Store
    worker: Worker
    progress: Progress
    chosen: precision.Precision
    sharers: int
    ranks: Ranks
    images: Mapping[str, Images]

    def take(self, origin: Mapping[str, Any]) -> bool:
        """Train a cohort, or wait a while; return whether there is more to do."""
        queue, keep = self.queue, self.assignment.keep
        if not queue.unfinished():
            return False
        fail_unreachable(queue, self.store, self.worker, self.progress, origin, keep)
        free = queue.cohorts()
        if not free:
            return queue.wait(self.assignment.patience)
        first, *parts = fitting(free[0], self.chosen.device, self.sharers)
        if cohort := queue.claim(first.only(first.runs[: self.assignment.at_most]), origin):
            teacher = cohort.teacher.network if cohort.teacher else None
            self.progress.cohort(len(parts) + len(free) - 1, list(cohort.runs), teacher)
            self._train(cohort)
        return True

    def _train(self, cohort: CohortPlan) -> None:
        for need in {need for run in cohort.runs for need in run.needs}:
            bring_student(self.store, need)
        self.ranks.broadcast(cohort)
        claimed = {run.id: run for run in cohort.runs}
        needs = (planned.run.needs for planned in self.assignment.planned_runs if planned.not_applicable is None)
        needed = self.assignment.needed.union(*needs)
        keep, url = self.assignment.keep, self.assignment.checkpoints
        keeper = recorder_of(self.store, self.worker, claimed, self.progress, keep, needed, url)
        own, graphs = self.images[cohort.runs[0].data.split_key], self.assignment.cuda_graphs
        try:
            train_in_parts(cohort, keeper, self.store.folder, own, self.chosen, self.ranks, cuda_graphs=graphs)
        except (KeyboardInterrupt, SystemExit):
            self.store.database.patience.seconds = 0.0  # who ends a command does not wait for a server that is away
            raise
        finally:
            self.worker.release(claimed)


def load_all(runs: Iterable[Run], data_root: Path) -> dict[str, Images]:
    """Load the images of all data sets of ``runs``, by their ``split_key``.

    Raises:
        BadRequest: see :func:`kdtable.data.load`.
    """
    return {key: data.load(spec, data_root) for key, spec in {run.data.split_key: run.data for run in runs}.items()}


def fail_unreachable(
    queue: WorkQueue, store: Store, worker: Worker, progress: Progress, origin: Mapping[str, Any], keep: str
) -> None:
    """Mark runs as failed whose prerequisite failed, with the prerequisite's reason."""
    for run, need in queue.unreachable():
        if worker.claim([run.id], origin):
            (failed,) = store.runs([need])
            what = f"{failed.row} of {failed.student}, seed {failed.seed}"
            Recorder(store, worker, {run.id: run}, progress, keep).failed(run.id, Unreachable(what, str(failed.reason)))
