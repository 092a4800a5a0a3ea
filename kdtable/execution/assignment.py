"""What a worker is given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, TeacherRef


@dataclass(frozen=True, slots=True)
class Assignment:
    """Runs to train, and where what they need lies. On which device, a worker decides where it runs.

    Attributes:
        planned_runs: of which a worker takes one cohort after another.
        results: folder of the store.
        data_root: where data sets are, or are downloaded to.
        url: of the store's database, if that is not in the folder.
        keep: "last", "all" or "none": which weights of a done run stay on disk.
        at_most: runs of a cohort that are trained together; ``None`` for as many as fit into memory.
    """

    planned_runs: tuple[PlannedRun, ...]
    results: Path
    data_root: Path
    url: str | None
    keep: str
    at_most: int | None = None

    def moved(self, to: Callable[[Path], Path]) -> "Assignment":
        """The same for a worker that finds each file elsewhere, as on another machine; no run's id changes."""
        planned_runs = tuple(replace(planned, run=_moved(planned.run, to)) for planned in self.planned_runs)
        return replace(self, planned_runs=planned_runs, results=to(self.results), data_root=to(self.data_root))


def _moved(run: Run, to: Callable[[Path], Path]) -> Run:
    data = run.data if run.data.path is None else replace(run.data, path=to(run.data.path))
    return replace(run, data=data, teacher=_moved_teacher(run.teacher, to), start=_moved_teacher(run.start, to))


def _moved_teacher(ref: TeacherRef | None, to: Callable[[Path], Path]) -> TeacherRef | None:
    return replace(ref, path=to(ref.path)) if isinstance(ref, FileTeacher) else ref
