"""From a request to planned runs, with teachers from files."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from kdtable import models
from kdtable.errors import BadRequest
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.request import Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teachers import teacher_finder


def plan_request(
    request: Request, teachers_dir: Path, files: Mapping[str, Path], *, allow_missing: bool = False
) -> tuple[PlannedRun, ...]:
    """Resolve a request.

        plan_request(Request(["resnet56:resnet20"], ["kd"], [1, 2, 3]), Path("teachers"), {})

    Args:
        request: what to train.
        teachers_dir: folder of fetched and trained teachers.
        files: weights of teachers that the user named, by canonical network name.
        allow_missing: plan with teachers that are not there yet (for a dry run).

    Raises:
        BadRequest: it cannot be resolved, or a file is the teacher of no pair.
    """
    planned_runs = resolve(request, teacher_finder(teachers_dir, files, allow_missing=allow_missing))
    started = {planned.run.start.network for planned in planned_runs if planned.run.start is not None}
    if unused := files.keys() - {planned.pair.teacher for planned in planned_runs} - started:
        raise BadRequest(f"--teacher {min(unused)} is the teacher of no pair that was asked for")
    return planned_runs


def teacher_files(named: Iterable[tuple[str, str | Path]]) -> dict[str, Path]:
    """Files of teachers by canonical network name, from names in any accepted spelling.

    Raises:
        BadRequest: an unknown name, a missing file, or two files for one network.
    """
    found: dict[str, Path] = {}
    for name, file in named:
        path = Path(file).expanduser()
        if not path.is_file():
            raise BadRequest(f"--teacher {name}: there is no file {path}")
        network = models.canonical(name)
        if found.get(network, path) != path:
            raise BadRequest(f"--teacher {network} is given as {found[network]} and as {path}: leave one out")
        found[network] = path
    return found
