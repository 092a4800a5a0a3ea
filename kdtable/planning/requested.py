"""From a request to planned runs, with teachers from files."""

from collections.abc import Sequence
from pathlib import Path

from kdtable.errors import BadRequest
from kdtable.models.sums import networks_of
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.given import GivenWeights
from kdtable.planning.request import Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teachers import start_finder, teacher_finder


def plan_request(
    request: Request, teachers_dir: Path, given: GivenWeights, *, allow_missing: bool = False
) -> tuple[PlannedRun, ...]:
    """Resolve a request.

        plan_request(Request(["resnet56:resnet20"], ["kd"], [1, 2, 3]), Path("teachers"), GivenWeights())

    Args:
        request: what to train.
        teachers_dir: folder of fetched and trained teachers.
        given: files of weights that the user named.
        allow_missing: plan with teachers that are not there yet (for a dry run).

    Raises:
        BadRequest: it cannot be resolved, or a file is the teacher of no pair, or nothing starts from it.
    """
    return plan_requests([request], teachers_dir, given, allow_missing=allow_missing)[0]


def plan_requests(
    requests: Sequence[Request], teachers_dir: Path, given: GivenWeights, *, allow_missing: bool = False
) -> list[tuple[PlannedRun, ...]]:
    """As `plan_request`, for several requests that share their teachers, whose files are read once."""
    find_teacher = teacher_finder(teachers_dir, given, allow_missing=allow_missing)
    find_start = start_finder(given)
    found = [resolve(request, find_teacher, find_start) for request in requests]
    _check_given(given, [planned for planned_runs in found for planned in planned_runs])
    return found


def _check_given(given: GivenWeights, planned_runs: Sequence[PlannedRun]) -> None:
    """Raise `BadRequest` if a file is the teacher of no pair, or nothing starts from it."""
    started = {planned.run.start.network for planned in planned_runs if planned.run.start is not None}
    teaching = {network for planned in planned_runs for network in networks_of(planned.pair.teacher)}
    if unused := given.teachers.keys() - teaching - started:
        raise BadRequest(f"--teacher {min(unused)} is the teacher of no pair that was asked for")
    if unused := given.starts.keys() - started:
        raise BadRequest(f"--start {min(unused)} is the student of no run that was asked for")
