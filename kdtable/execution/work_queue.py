"""A work queue over a store that other processes use too: which runs are left, free, or to be waited for."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from kdtable.errors import BadRequest
from kdtable.execution.progress import Progress
from kdtable.planning.cohorts import CohortPlan, PlannedRun, cohorts
from kdtable.planning.run import Run
from kdtable.planning.teachers import other_data
from kdtable.provenance import with_networks
from kdtable.store import Store, Worker
from kdtable.store.claims import Survey

#: Seconds between two looks at other processes' runs.
PAUSE: Final = 2.0


class WorkQueue:
    """The runs of a request, claimed one cohort at a time.

    Args:
        planned_runs: the request or a part of it, planned in the store.
        store: the store that plans it.
        worker: claims runs for this process.
        progress: receives events about runs that other processes finish, and about waiting.
    """

    def __init__(self, planned_runs: Sequence[PlannedRun], store: Store, worker: Worker, progress: Progress) -> None:
        self._runs = {planned.run.id: planned.run for planned in planned_runs if planned.not_applicable is None}
        self._needed = {need for run in self._runs.values() for need in run.needs}  # may be other workers' runs
        self._store = store
        self._worker = worker
        self._progress = progress
        self._over: set[str] = set()
        self._survey = Survey({}, frozenset(), {})
        self._reported_waiting = False
        self._waiting_since: float | None = None
        self._look()
        progress.started(sum(map(images, self._runs.values())))

    def unfinished(self) -> bool:
        """Look at the store; return whether any run is neither done nor failed. Failed runs are not retried."""
        over = self._over | self._look()
        for run_id in over - self._over:
            if self._survey.statuses[run_id] == "done":
                self._progress.reached(run_id, images(self._runs[run_id]))
        self._over = over
        return bool(self._runs.keys() - over)

    def cohorts(self) -> list[CohortPlan]:
        """Cohorts of runs that nobody had claimed at the last :meth:`unfinished` and whose prerequisites are done."""
        ids = self._survey.free - self._over
        free = [run for run_id, run in self._runs.items() if run_id in ids]
        return cohorts(run for run in free if all(self._survey.statuses.get(need) == "done" for need in run.needs))

    def unreachable(self) -> list[tuple[Run, str]]:
        """Runs that cannot begin because a prerequisite failed, each with that prerequisite's id."""
        waiting = [self._runs[run_id] for run_id in sorted(self._survey.free & self._runs.keys() - self._over)]
        failed = {run_id for run_id, status in self._survey.statuses.items() if status == "failed"}
        return [(run, min(failed & set(run.needs))) for run in waiting if failed & set(run.needs)]

    def claim(self, cohort: CohortPlan, origin: Mapping[str, Any]) -> CohortPlan | None:
        """Claim a cohort; return the part that was free, or ``None`` if other processes have claimed all of it."""
        # What is known of data and teacher, and is not part of a run's identity.
        if skipped := len(cohort.runs[0].data.skipped):
            origin = {**origin, "skipped": skipped}
        if other := next(filter(None, (other_data(run.teacher, run.data) for run in cohort.runs)), None):
            origin = {**origin, "teacher_data": other}
        alike: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
        for run in cohort.runs:
            own = with_networks(origin, [run.student, *([run.teacher.network] if run.teacher else [])])
            alike.setdefault(repr(own["packages"]), (own, []))[1].append(run.id)
        claimed = {run_id for own, ids in alike.values() for run_id in self._worker.claim(ids, own)}
        self._waiting_since = None
        return cohort.only(run for run in cohort.runs if run.id in claimed) if claimed else None

    def wait(self, patience: float | None = None) -> bool:
        """Pause while other processes train; the first call notifies the user.

        Args:
            patience: seconds that calls may last together until a run is claimed again; ``None`` for no limit.

        Returns:
            Whether there is patience left.
        """
        self._waiting_since = self._waiting_since or time.monotonic()
        if patience is not None and time.monotonic() - self._waiting_since >= patience:
            return False
        elsewhere = self._survey.elsewhere
        if elsewhere and not self._reported_waiting:
            processes = sorted({f"{process.host} (process {process.pid})" for process in elsewhere.values()})
            self._progress.waiting(len(elsewhere), processes)
            self._reported_waiting = True
        time.sleep(min(PAUSE, self._worker.lease / 10))
        return True

    def _look(self) -> set[str]:
        """Survey what was not done or failed at the last look; return the ids of the request's runs that are."""
        survey = self._worker.survey((self._runs.keys() | self._needed) - self._over)
        statuses = {run_id: self._survey.statuses[run_id] for run_id in self._over} | dict(survey.statuses)
        self._survey = replace(survey, statuses=statuses)
        if self._runs.keys() - statuses.keys():
            raise BadRequest(f"{self._store.database.name} has lost runs that were planned: run the command again")
        return {run_id for run_id in self._runs if statuses[run_id] not in ("planned", "running")}


def images(run: Run) -> int:
    """Number of training images of a run: images x epochs."""
    return run.total_epochs * run.data.train_count
