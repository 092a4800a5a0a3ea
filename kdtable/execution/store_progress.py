"""Progress of workers that do not report it, read from the store."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kdtable.execution.progress import Progress
from kdtable.execution.work_queue import images
from kdtable.planning.cohorts import PlannedRun, cohorts
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord
from kdtable.store import Store

#: Histories that are read together: fewer queries, and little memory.
AT_ONCE: Final = 100


class StoreProgress:
    """Reports changes in the store since the last look as progress events.

    Args:
        planned_runs: the request, planned in the store.
        store: the store that the workers write to.
        progress: receives the events.
    """

    def __init__(self, planned_runs: Iterable[PlannedRun], store: Store, progress: Progress) -> None:
        self._runs = {planned.run.id: planned.run for planned in planned_runs if planned.not_applicable is None}
        self._store = store
        self._progress = progress
        self._epochs: defaultdict[str, int] = defaultdict(int)  # number of reported epochs by run id
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
            histories = self._store.histories(run.id for run in some)
            for run in some:
                self._report_epochs(run.id, histories.get(run.id, ()))
                if run.status == "failed":
                    self._progress.failed(self._runs[run.id], str(run.reason))
                if run.status in ("done", "failed"):
                    self._over.add(run.id)

    def _report_cohorts(self, begun: set[str]) -> None:
        new = [self._runs[run_id] for run_id in self._runs if run_id in begun - self._begun]
        self._begun |= begun
        waiting = [run for run_id, run in self._runs.items() if run_id not in self._begun | self._over]
        groups, left = cohorts(new), len(cohorts(waiting))
        for more, cohort in zip(range(len(groups) - 1, -1, -1), groups, strict=True):
            teacher = cohort.teacher.network if cohort.teacher else None
            self._progress.cohort(left + more, list(cohort.runs), teacher)

    def _report_epochs(self, run_id: str, history: Sequence[EpochRecord]) -> None:
        run = self._runs[run_id]
        self._progress.reached(run_id, len(history) * run.data.train_count)
        for record in history[self._epochs[run_id] :]:
            self._progress.epoch(run, record)
        self._epochs[run_id] = len(history)


def report_reached(runs: Mapping[str, Run], store: Store, progress: Progress) -> None:
    """Report how far the runs of a request, by id, are before it begins."""
    for stored in store.runs(runs):
        run = runs[stored.id]
        if stored.done:
            progress.reached(run.id, images(run))
        elif stored.attempt:
            progress.reached(run.id, len(store.history(run.id)) * run.data.train_count)
