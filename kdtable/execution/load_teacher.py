"""Load a teacher's networks with their weights, from files or from the run that trained it."""

from pathlib import Path

import torch

from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest
from kdtable.models.ensemble import Ensemble, single_networks
from kdtable.models.network import Network
from kdtable.numerics.layout import to_device
from kdtable.planning.teacher_refs import (
    FileTeacher,
    NetworkRef,
    RunTeacher,
    SeveralTeachers,
    TeacherRef,
    single_refs,
)
from kdtable.store.files import STUDENT, run_folder
from kdtable.teachers.weights import load_into, read_weights
from kdtable.training.build import build_teacher


def load_teacher(
    teacher: TeacherRef, data: DataSpec, device: torch.device, results: Path | None = None
) -> Network | Ensemble:
    """Load the frozen teacher, or the ensemble of several, onto ``device``.

    Args:
        teacher: reference to its weights.
        data: the data set that it was trained on.
        device: target device.
        results: folder of the store, for a teacher from one of its runs.

    Raises:
        BadRequest: a file changed since the plan was made, does not fit, or is missing.
    """
    network = untrained_teacher(teacher, data)
    for ref, one in zip(single_refs(teacher), single_networks(network), strict=True):
        _load(one, ref, results)
    return to_device(network, device)


def untrained_teacher(teacher: TeacherRef, data: DataSpec) -> Network | Ensemble:
    """The frozen networks of a teacher in eval mode, without its weights."""
    if isinstance(teacher, SeveralTeachers):
        return Ensemble(_untrained(ref, data) for ref in teacher.teachers).eval()
    return _untrained(teacher, data)


def _untrained(ref: NetworkRef, data: DataSpec) -> Network:
    return build_teacher(ref.network, data.num_classes, ref.mean, ref.std, data.image_size)


def _load(network: Network, teacher: NetworkRef, results: Path | None) -> None:
    if isinstance(teacher, FileTeacher):
        weights = read_weights(teacher.path)
        if weights.sha256 != teacher.sha256:
            raise BadRequest(f"{teacher.path} changed while it was in use: run the command again")
        load_into(network, weights, name=teacher.network)
    elif isinstance(teacher, RunTeacher) and results is not None:
        try:
            load_into(network, read_weights(run_folder(results, teacher.run) / STUDENT), name=teacher.network)
        except BadRequest as error:
            raise BadRequest(
                f"the network that others start from or learn from is gone ({error}): 'kdtable store check' tells more"
            ) from error
    else:
        raise BadRequest(f"the weights of {teacher.network} are not there")
