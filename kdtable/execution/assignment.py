"""The work given to a worker."""

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kdtable.errors import BadRequest
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, NetworkRef, SeveralTeachers, TeacherRef
from kdtable.plugins import Plugin, load_same


@dataclass(frozen=True, slots=True)
class Assignment:
    """Runs to train, and the paths that they need. The device is not part of it: each worker has its own.

    It travels to another process by pickle, which there first loads the plug-ins: the runs hold objects of theirs. So
    nothing is built before, and a process that sees another file refuses it with a `BadRequest`.

    Attributes:
        planned_runs: the runs; a worker claims one cohort after another.
        results: folder of the store.
        data_root: folder of data sets.
        url: URL of the store's database, if it is not in the folder.
        keep: "last", "all" or "none": which weights of a done run stay on disk.
        cuda_graphs: whether steps are recorded as CUDA graphs.
        at_most: maximum cohort size; ``None`` for as many runs as fit into memory.
        needed: ids of prerequisites of runs that are not part of the assignment.
        patience: seconds that a worker waits for other processes when nothing else is left to do; ``None`` for as long
            as these live.
        plugins: the plug-ins that the runs may need, as this process loaded them.
        checkpoints: URL of the folder of checkpoints and students, if they are not in ``results``.
    """

    planned_runs: tuple[PlannedRun, ...]
    results: Path
    data_root: Path
    url: str | None
    keep: str
    cuda_graphs: bool = False
    at_most: int | None = None
    needed: frozenset[str] = frozenset()
    patience: float | None = None
    plugins: tuple[Plugin, ...] = ()
    checkpoints: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return _unpickled, (self.plugins, pickle.dumps(content))

    def moved(self, to: Callable[[Path], Path]) -> "Assignment":
        """The same assignment with every path mapped by ``to``, as for another machine; run ids do not change."""
        planned_runs = tuple(replace(planned, run=_moved(planned.run, to)) for planned in self.planned_runs)
        plugins = tuple(replace(plugin, path=to(plugin.path)) for plugin in self.plugins)
        return replace(
            self, planned_runs=planned_runs, results=to(self.results), data_root=to(self.data_root), plugins=plugins
        )


def _unpickled(plugins: tuple[Plugin, ...], content: bytes) -> Assignment:
    load_same(plugins)
    assignment = Assignment(**pickle.loads(content))
    _check_sources(planned.run for planned in assignment.planned_runs)
    return assignment


def _check_sources(runs: Iterable[Run]) -> None:
    """Refuse runs of an installed package whose source is another here than where they were planned."""
    for run in {run.protocol_id: run for run in runs if '"source":' in run.protocol_text}.values():
        if replace(run).protocol_id != run.protocol_id:
            raise BadRequest(
                f"{run.row} of {run.student}: the source of a package that it needs is another here than where this "
                "command began: install the same everywhere, and call again"
            )


def _moved(run: Run, to: Callable[[Path], Path]) -> Run:
    data = run.data if run.data.path is None else replace(run.data, path=to(run.data.path))
    start = None if run.start is None else _moved_ref(run.start, to)
    return replace(run, data=data, teacher=_moved_teacher(run.teacher, to), start=start)


def _moved_teacher(ref: TeacherRef | None, to: Callable[[Path], Path]) -> TeacherRef | None:
    if isinstance(ref, SeveralTeachers):
        return SeveralTeachers(tuple(_moved_ref(one, to) for one in ref.teachers))
    return None if ref is None else _moved_ref(ref, to)


def _moved_ref(ref: NetworkRef, to: Callable[[Path], Path]) -> NetworkRef:
    return replace(ref, path=to(ref.path)) if isinstance(ref, FileTeacher) else ref
