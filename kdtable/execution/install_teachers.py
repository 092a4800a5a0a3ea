"""Training teachers: plain runs of the teacher's network, whose students become teachers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from kdtable.checkpoints import checkpoint
from kdtable.errors import BadRequest, Trouble
from kdtable.files.atomic import locked, set_aside
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.planning.teachers import read_teacher
from kdtable.store import Store
from kdtable.store.files import STUDENT
from kdtable.teachers.locations import (
    BadTeacher,
    home,
    lock_of,
    teacher_path,
)


def check_room(planned_runs: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Refuse to train a teacher whose place is taken by another file; a damaged or changed one is set aside.

    Returns:
        A sentence for each file that was set aside.

    Raises:
        BadRequest: a fetched teacher, or one trained otherwise, is there.
    """
    from kdtable.teachers.weights import read_weights

    notes = []
    for run in (planned.run for planned in planned_runs):
        there = teacher_path(folder, run.data.key, run.student)
        if there is None:
            continue
        try:
            trained_by = read_weights(there).run
            if trained_by == run.id:
                read_teacher(there, run.student, run.data)  # that run's weights, as far as can be told
        except BadTeacher as error:
            notes.append(f"{error}; it was set aside as {set_aside(there).name}")
            continue
        if trained_by != run.id:
            raise BadRequest(f"{there} is another teacher: move it away, or name another --teachers-dir")
    return notes


def install(planned_runs: Sequence[PlannedRun], results: Path, folder: Path, url: str | None = None) -> list[Path]:
    """Put the trained networks where plans look for teachers; those whose run is not done are left out.

    Raises:
        BadRequest: a done run's network cannot be read.
        Trouble: the teacher cannot be written.
    """
    store = Store(results, url, create=False)
    statuses = store.statuses(planned.run.id for planned in planned_runs)
    installed = []
    for planned in planned_runs:
        run = planned.run
        if statuses.get(run.id) != "done":
            continue
        path = home(folder, run.data.key, run.student)
        try:
            trained = checkpoint.load(store.run_folder(run.id) / STUDENT)
            if trained.get("run") != run.id:
                raise checkpoint.BadCheckpoint(f"{store.run_folder(run.id) / STUDENT} belongs to another run")
        except checkpoint.BadCheckpoint as error:
            advice = "name another --results to train it anew"
            raise BadRequest(f"the trained network is gone: {error}; {advice}") from error
        _install(path, folder, run, trained["student"])
        installed.append(path)
    return installed


def _install(path: Path, folder: Path, run: Run, student: Mapping[str, Tensor]) -> None:
    from kdtable.teachers.weights import save_weights

    try:
        with locked(lock_of(folder)):
            if _is_there(path, run, student):
                return
            save_weights(
                path,
                student,
                network=run.student,
                num_classes=run.data.num_classes,
                mean=run.data.mean,
                std=run.data.std,
                run=run.id,
                data=run.data.key,
            )
    except OSError as error:
        raise Trouble(
            f"{run.student} is trained, but {path} cannot be written ({error.strerror}): see to that, and call again"
        ) from error


def _is_there(path: Path, run: Run, student: Mapping[str, Tensor]) -> bool:
    """Whether a file holds a run's network already.

    It is left alone then: another version's file of the same weights may differ in its bytes, and its checksum stands
    beside the runs that it taught.
    """
    from kdtable.teachers.weights import content_digest, load_into, read_weights
    from kdtable.training.build import build_teacher

    network = build_teacher(run.student, run.data.num_classes, run.data.mean, run.data.std, run.data.image_size)
    try:
        weights = read_weights(path)
        load_into(network, weights, name=run.student)
    except BadRequest:
        return False
    about = (weights.run, weights.data, weights.mean, weights.std)
    same = about == (run.id, run.data.key, run.data.mean, run.data.std)
    return same and content_digest(network.state_dict()) == content_digest(student)
