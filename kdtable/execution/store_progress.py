"""Progress of workers that do not report it, read from the store."""

from collections.abc import Iterable, Mapping
from typing import Final

from kdtable.execution.progress import Progress
from kdtable.execution.work_queue import images
from kdtable.planning.cohorts import PlannedRun, cohorts
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord
from kdtable.store import Store

#: Runs whose epochs are read together: fewer queries, and little memory.
AT_ONCE: Final = 100


class StoreProgress:
    """Reports changes in the store since the last look as progress events; of a run's new epochs, the newest.

    Args:
        planned_runs: the request, planned in the store.
        store: the store that the workers write to.
        progress: receives the events.
    """

    def __init__(self, planned_runs: Iterable[PlannedRun], store: Store, progress: Progress) -> None:
        self._runs = {planned.run.id: planned.run for planned in planned_runs if planned.not_applicable is None}
        self._store = store
        self._progress = progress
        self._seconds: dict[str, float] = {}  # of training at the last look, by run id: every epoch adds to it
        self._begun: set[str] = set()
        statuses = store.statuses(self._runs)
        self._over = {run_id for run_id, status in statuses.items() if status in ("done", "failed")}
        progress.started(sum(map(images, self._runs.values())))

    def look(self) -> None:
        """Report new cohorts, epochs and failures."""
        statuses = self._store.statuses(self._runs.keys() - self._over)
        begun = self._store.runs(run_id for run_id, status in statuses.items() if status != "planned")
        self._report_cohorts({run.id for run in begun})
        for at in range(0, len(begun), AT_ONCE):
            some = begun[at : at + AT_ONCE]
            seconds = {run.id: run.result.wall_seconds for run in some if run.result}
            newest = self._store.newest(run for run, now in seconds.items() if now != self._seconds.get(run))
            self._seconds |= seconds
            for run in some:
                if run.id in newest:
                    self._report_epoch(run.id, *newest[run.id])
                if run.status == "failed":
                    self._progress.failed(self._runs[run.id], str(run.reason))
                if run.status in ("done", "failed"):
                    self._over.add(run.id)

    def _report_cohorts(self, begun: set[str]) -> None:
        begins = begun - self._begun
        new = [run for run_id, run in self._runs.items() if run_id in begins]
        self._begun |= begun
        past = self._begun | self._over
        waiting = [run for run_id, run in self._runs.items() if run_id not in past]
        groups, left = cohorts(new), len(cohorts(waiting))
        for more, cohort in zip(range(len(groups) - 1, -1, -1), groups, strict=True):
            teacher = cohort.teacher.network if cohort.teacher else None
            self._progress.cohort(left + more, list(cohort.runs), teacher)

    def _report_epoch(self, run_id: str, count: int, record: EpochRecord) -> None:
        run = self._runs[run_id]
        self._progress.reached(run_id, count * run.data.train_count)
        self._progress.epoch(run, record)


def report_reached(runs: Mapping[str, Run], store: Store, progress: Progress) -> None:
    """Report how far the runs of a request, by id, are before it begins."""
    known = store.runs(runs)
    epochs = store.epochs(stored.id for stored in known if stored.attempt and not stored.done)
    for stored in known:
        run = runs[stored.id]
        if stored.done:
            progress.reached(run.id, images(run))
        elif stored.attempt:
            progress.reached(run.id, epochs[run.id] * run.data.train_count)
