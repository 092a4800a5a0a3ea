"""The work given to a worker."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, TeacherRef


@dataclass(frozen=True, slots=True)
class Assignment:
    """Runs to train, and the paths that they need. The device is not part of it: each worker has its own.

    Attributes:
        planned_runs: the runs; a worker claims one cohort after another.
        results: folder of the store.
        data_root: folder of data sets.
        url: URL of the store's database, if it is not in the folder.
        keep: "last", "all" or "none": which weights of a done run stay on disk.
        cuda_graphs: whether steps are recorded as CUDA graphs.
        at_most: maximum cohort size; ``None`` for as many runs as fit into memory.
    """

    planned_runs: tuple[PlannedRun, ...]
    results: Path
    data_root: Path
    url: str | None
    keep: str
    cuda_graphs: bool = False
    at_most: int | None = None

    def moved(self, to: Callable[[Path], Path]) -> "Assignment":
        """The same assignment with every path mapped by ``to``, as for another machine; run ids do not change."""
        planned_runs = tuple(replace(planned, run=_moved(planned.run, to)) for planned in self.planned_runs)
        return replace(self, planned_runs=planned_runs, results=to(self.results), data_root=to(self.data_root))


def _moved(run: Run, to: Callable[[Path], Path]) -> Run:
    data = run.data if run.data.path is None else replace(run.data, path=to(run.data.path))
    return replace(run, data=data, teacher=_moved_teacher(run.teacher, to), start=_moved_teacher(run.start, to))


def _moved_teacher(ref: TeacherRef | None, to: Callable[[Path], Path]) -> TeacherRef | None:
    return replace(ref, path=to(ref.path)) if isinstance(ref, FileTeacher) else ref
