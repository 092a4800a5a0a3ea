"""Which file of weights a teacher of a plan is."""

from collections.abc import Mapping
from pathlib import Path

from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest
from kdtable.plan import FindTeacher
from kdtable.runs import TeacherRef
from kdtable.teachers.manifest import lookup
from kdtable.teachers.places import teacher_path


def teacher_finder(folder: Path, files: Mapping[str, Path], *, allow_missing: bool = False) -> FindTeacher:
    """How a plan finds teachers: files that the user named first, then those fetched or trained.

    Args:
        folder: where fetched and trained teachers lie.
        files: canonical network name to a file that a user named.
        allow_missing: give a reference without weights for a teacher that is not there (for a dry run).
    """
    found: dict[tuple[str, str], TeacherRef] = {}

    def find(network: str, data: DataSpec) -> TeacherRef:
        key = (network, data.key)
        if key not in found:
            found[key] = _find_teacher(network, data, folder, files, allow_missing)
        return found[key]

    return find


def _find_teacher(
    network: str, data: DataSpec, folder: Path, files: Mapping[str, Path], allow_missing: bool
) -> TeacherRef:
    path = files.get(network) or teacher_path(folder, data.key, network)
    if path is not None:
        return read_teacher(path, network, data)
    if allow_missing:
        return TeacherRef(network, data.mean, data.std, sha256="not fetched yet", path=Path())
    published = lookup(data.key, network)
    command = f"kdtable fetch-teachers {published.name}" if published else _training_command(network, data)
    raise BadRequest(
        f"there is no teacher {network} for {data.name} in {folder}: get it with '{command}', "
        f"or name a file with --teacher {network}=FILE"
    )


def _training_command(network: str, data: DataSpec) -> str:
    name = f"{data.kind}:{data.path}" if data.path else data.name
    return f"kdtable train-teachers {network} --data {name}"


def read_teacher(path: Path, network: str, data: DataSpec) -> TeacherRef:
    """A reference to a file of weights, checked against the network's shapes and the data set's classes.

    A file that is neither a published one nor ours does not say how its inputs were normalised: the data set's
    constants are taken.

    Raises:
        BadRequest: not a checkpoint, of another architecture, or of another number of classes.
    """
    from kdtable.teachers.files import load_into, read_weights
    from kdtable.training.build import build_teacher

    weights = read_weights(path)
    mean, std = weights.mean or data.mean, weights.std or data.std
    load_into(build_teacher(network, data.num_classes, mean, std), weights, name=network)
    return TeacherRef(network, mean, std, weights.sha256, path, weights.run, weights.claimed_top1)
