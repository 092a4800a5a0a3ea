"""A teacher's network with its weights, from a file or from the run that trained it."""

from pathlib import Path

import torch

from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest
from kdtable.models.network import Network
from kdtable.numerics.layout import to_device
from kdtable.planning.teacher_refs import FileTeacher, RunTeacher, TeacherRef
from kdtable.store.files import STUDENT, run_folder
from kdtable.teachers.weights import load_into, read_weights
from kdtable.training.build import build_teacher


def load_teacher(teacher: TeacherRef, data: DataSpec, device: torch.device, results: Path | None = None) -> Network:
    """The frozen teacher with its weights, on ``device``.

    Args:
        teacher: whose weights.
        data: what it was trained on.
        device: where to.
        results: folder of the runs, where one of them makes the teacher.

    Raises:
        BadRequest: the file changed since the plan was made, or does not fit.
    """
    network = build_teacher(teacher.network, data.num_classes, teacher.mean, teacher.std, data.image_size)
    if isinstance(teacher, FileTeacher):
        _load_file(network, teacher)
    elif isinstance(teacher, RunTeacher) and results is not None:
        _load_trained(network, run_folder(results, teacher.run) / STUDENT, teacher.network)
    else:
        raise BadRequest(f"the weights of {teacher.network} are not there")
    return to_device(network, device)


def _load_file(network: Network, teacher: FileTeacher) -> None:
    """Fill a network with the weights of a file."""
    weights = read_weights(teacher.path)
    if weights.sha256 != teacher.sha256:
        raise BadRequest(f"{teacher.path} changed while it was in use: run the command again")
    load_into(network, weights, name=teacher.network)


def _load_trained(network: Network, path: Path, name: str) -> None:
    """Fill a network with the weights that a run left."""
    try:
        load_into(network, read_weights(path), name=name)
    except BadRequest as error:
        raise BadRequest(
            f"the network that others start from or learn from is gone ({error}): 'kdtable store check' tells more"
        ) from error
