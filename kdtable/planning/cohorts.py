"""What a request comes to: its planned runs, and the cohorts in which they are trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdtable.numerics.names import split_precision
from kdtable.papers import DEFAULT_PAPER, Pair
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import RunTeacher, TeacherRef

if TYPE_CHECKING:
    from kdtable.methods.base import Method

#: What a teacher's cache can keep beside its logits.
CACHED_FEATURES = frozenset({"embedding"})


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run as part of the request.

    Attributes:
        pair: teacher and student that it stands for.
        row: name of the method's row.
        run: what is trained.
        not_applicable: why the row's method cannot be run on this pair; such a run is never trained.
        prerequisite: whether it was not asked for itself, but must be trained before something that was.
        paper: whose row it is.
    """

    pair: Pair
    row: str
    run: Run
    not_applicable: str | None = None
    prerequisite: bool = False
    paper: str = DEFAULT_PAPER


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """Runs that are trained together: one batch stream, and one teacher or none."""

    teacher: TeacherRef | None
    runs: tuple[Run, ...]


def why_uncached(run: Run) -> str | None:
    """Why a teacher's cache is of no use to a run, in one clause; ``None`` if it is used.

    Only for runs of a request that asked for it.
    """
    if run.teacher_cache != "off":
        return None
    if run.teacher is None:
        return "no teacher"
    if isinstance(run.teacher, RunTeacher):
        return "its teacher is made first"
    return f"reads the teacher's {', '.join(sorted(teacher_features(run.method) - CACHED_FEATURES))}"


def teacher_features(method: "type[Method]") -> frozenset[str]:
    """What a method reads of a teacher, in any stage, beside logits."""
    return method.teacher_features | method.early_teacher_features


def missing(planned_runs: Iterable[PlannedRun], statuses: Mapping[str, str]) -> list[Run]:
    """Runs that are not done yet, each once: pairs share their runs without a teacher. What failed is tried again."""
    wanted = {planned.run.id: planned.run for planned in planned_runs if planned.not_applicable is None}
    return [run for run_id, run in wanted.items() if statuses.get(run_id) != "done"]


def layers(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs in layers, of which each needs none of these runs but those of the layers before it."""
    found: list[list[Run]] = []
    left = {run.id: run for run in runs}
    while left:
        ready = {run_id: run for run_id, run in left.items() if not any(need in left for need in run.needs)}
        found.append(list(ready.values()))
        left = {run_id: run for run_id, run in left.items() if run_id not in ready}
    return found


def cohorts(runs: Iterable[Run]) -> list[CohortPlan]:
    """Group runs that share batch stream, teacher and its cache, what others need first, then seed by seed.

    Runs without a teacher join a cohort that has one.
    """
    return [cohort for layer in layers(runs) for cohort in _grouped(layer)]


def _grouped(runs: Iterable[Run]) -> list[CohortPlan]:
    streams: dict[tuple[Any, ...], dict[tuple[TeacherRef | None, str], list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        computed, cache = split_precision(run.precision)
        stream = (
            run.seed,
            run.data.key,
            run.recipe.batch_size,
            run.recipe.crop_padding,
            run.recipe.crop_fill,
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
