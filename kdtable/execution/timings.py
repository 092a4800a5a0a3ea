"""How long runs take, from the epochs of similar runs in the store."""

from collections.abc import Iterable
from pathlib import Path

from kdtable.execution.known import opened
from kdtable.planning.run import Run
from kdtable.store import RunRecord, Store

#: Student, row and data set.
Kind = tuple[str, str, str]


class Timings:
    """Seconds that a run takes of a worker's time, its share of the cohort's.

    Args:
        seconds: of an epoch, by kind.
    """

    def __init__(self, seconds: dict[Kind, float]) -> None:
        self._kinds = seconds
        self._students: dict[tuple[str, str], list[float]] = {}
        for (student, _, data), value in seconds.items():
            self._students.setdefault((student, data), []).append(value)

    def of(self, run: Run) -> float | None:
        """Seconds of a run; ``None`` if the store has no run of this student on this data set."""
        alike = self._students.get((run.student, run.data.key))
        if not alike:
            return None
        epoch = self._kinds.get((run.student, run.row, run.data.key), max(alike))
        return epoch * run.total_epochs


def stored_timings(results: Path, url: str | None, runs: Iterable[Run]) -> Timings:
    """Read what the store, if there is one, knows of runs like these: the latest done run of each kind."""
    wanted = {(run.student, run.data.key) for run in runs}
    with opened(results, url) as store:
        if store is None:
            return Timings({})
        done = [run for run in store.runs() if run.done and (run.student, run.data) in wanted]
        latest = {(run.student, run.row, run.data): run for run in done}
        return Timings({kind: seconds for kind, run in latest.items() if (seconds := _epoch_seconds(store, run))})


def _epoch_seconds(store: Store, run: RunRecord) -> float:
    history = store.history(run.id)
    return sum(record.seconds / record.cohort_size for record in history) / max(1, len(history))
