"""Planned runs, and the cohorts that train them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdtable.numerics.names import split_precision
from kdtable.papers import DEFAULT_PAPER, Pair
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import RunTeacher, SeveralTeachers, TeacherRef

if TYPE_CHECKING:
    from kdtable.methods.base import Method

#: Features that a teacher cache can hold besides logits.
CACHED_FEATURES = frozenset({"embedding"})


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a request.

    Attributes:
        pair: teacher and student that the run stands for in tables.
        row: name of the method's row.
        run: the run to train.
        not_applicable: why the method cannot be run on this pair; it is then never trained.
        prerequisite: whether the run is not requested itself, but needed by one that is.
        paper: name of the paper that defines the row.
    """

    pair: Pair
    row: str
    run: Run
    not_applicable: str | None = None
    prerequisite: bool = False
    paper: str = DEFAULT_PAPER


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """Runs that train on one batch stream, with one teacher or none."""

    teacher: TeacherRef | None
    runs: tuple[Run, ...]

    def only(self, runs: Iterable[Run]) -> "CohortPlan":
        """The cohort with some of its runs."""
        left = tuple(runs)
        return CohortPlan(self.teacher if any(run.teacher for run in left) else None, left)


def why_uncached(run: Run) -> str | None:
    """Why a run does not use the teacher cache that its request enables, in one clause; ``None`` if it does."""
    if run.teacher_cache != "off":
        return None
    if run.teacher is None:
        return "no teacher"
    if isinstance(run.teacher, RunTeacher):
        return "its teacher is made first"
    if isinstance(run.teacher, SeveralTeachers):
        return "it has several teachers"
    return f"reads the teacher's {', '.join(sorted(teacher_features(run.method) - CACHED_FEATURES))}"


def teacher_features(method: "type[Method]") -> frozenset[str]:
    """The teacher features besides logits that a method reads in any stage."""
    return method.teacher_features | method.early_teacher_features


def missing(planned_runs: Iterable[PlannedRun], statuses: Mapping[str, str]) -> list[Run]:
    """Runs that are not done yet, each once, since pairs share runs without a teacher. Failed runs are included."""
    wanted = {planned.run.id: planned.run for planned in planned_runs if planned.not_applicable is None}
    return [run for run_id, run in wanted.items() if statuses.get(run_id) != "done"]


def layers(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs in layers; each layer needs only runs of the layers before it."""
    found: list[list[Run]] = []
    left = {run.id: run for run in runs}
    while left:
        ready = {run_id: run for run_id, run in left.items() if not any(need in left for need in run.needs)}
        found.append(list(ready.values()))
        left = {run_id: run for run_id, run in left.items() if run_id not in ready}
    return found


def cohorts(runs: Iterable[Run]) -> list[CohortPlan]:
    """Group runs by batch stream, teacher and teacher cache; prerequisites come first, then seed by seed.

    Runs without a teacher join a cohort with one, where there is one.
    """
    return [cohort for layer in layers(runs) for cohort in _grouped(layer)]


def _grouped(runs: Iterable[Run]) -> list[CohortPlan]:
    streams: dict[tuple[Any, ...], dict[tuple[TeacherRef | None, str], list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        computed, cache = split_precision(run.precision)
        stream = (
            run.seed,
            run.data.split_key,
            run.recipe.stream,
            computed,
        )
        streams.setdefault(stream, {}).setdefault((run.teacher, cache), []).append(run)
    planned = []
    for by_teacher in streams.values():
        without_teacher = by_teacher.pop((None, "off"), [])
        if not by_teacher:
            planned.append(CohortPlan(None, tuple(without_teacher)))
        for position, ((teacher, _), with_teacher) in enumerate(by_teacher.items()):
            planned.append(CohortPlan(teacher, tuple((without_teacher if position == 0 else []) + with_teacher)))
    return planned
