"""Install trained networks as teachers."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from kdtable.errors import BadRequest, Trouble
from kdtable.files.atomic import locked, set_aside, written_whole
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.planning.teachers import read_teacher
from kdtable.store import Store
from kdtable.store.shared import bring_student
from kdtable.teachers.locations import (
    BadTeacher,
    home,
    lock_of,
    teacher_path,
)
from kdtable.teachers.weights import TeacherWeights, load_into, read_weights
from kdtable.training.build import build_teacher


def check_room(planned_runs: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Refuse to train a teacher whose path another teacher occupies; set a damaged or changed file aside.

    Returns:
        A sentence for each file that was set aside.

    Raises:
        BadRequest: a fetched teacher, or one of another run, is there.
    """
    notes = []
    for run in (planned.run for planned in planned_runs):
        there = teacher_path(folder, run.data.key, run.student)
        if there is None:
            continue
        try:
            trained_by = read_weights(there).run
            if trained_by == run.id:
                read_teacher(there, run.student, run.data)  # raises if the file is damaged
        except BadTeacher as error:
            notes.append(f"{error}; it was set aside as {set_aside(there).name}")
            continue
        if trained_by != run.id:
            raise BadRequest(f"{there} is another teacher: move it away, or name another --teachers-dir")
    return notes


def install(planned_runs: Sequence[PlannedRun], results: Path, folder: Path, url: str | None = None) -> list[Path]:
    """Copy the trained networks of done runs to where plans look for teachers; return their paths.

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
            trained = bring_student(store, run.id)
            weights = read_weights(trained)
            if weights.run != run.id:
                raise BadTeacher(f"{trained} belongs to another run")
            _check_fits(weights, run)
        except BadRequest as error:
            advice = "name another --results to train it anew"
            raise BadRequest(f"the trained network is gone: {error}; {advice}") from error
        _install(path, folder, run, weights)
        installed.append(path)
    return installed


def _install(path: Path, folder: Path, run: Run, trained: TeacherWeights) -> None:
    """Copy a run's student to a teacher's path, unless the same weights are there already.

    A file of the same weights from another version may differ in its bytes. It is not replaced, because the store has
    its checksum beside the runs that used it.
    """
    try:
        with locked(lock_of(folder)):
            if _is_there(path, run, trained):
                return
            with trained.path.open("rb") as student, written_whole(path, alone=True) as file:
                shutil.copyfileobj(student, file)
    except OSError as error:
        raise Trouble(
            f"{run.student} is trained, but {path} cannot be written ({error.strerror}): see to that, and call again"
        ) from error


def _is_there(path: Path, run: Run, trained: TeacherWeights) -> bool:
    try:
        weights = read_weights(path)
        _check_fits(weights, run)
    except BadRequest:
        return False
    about, wanted = ((w.content, w.run, w.data, w.mean, w.std) for w in (weights, trained))
    return about == wanted


def _check_fits(weights: TeacherWeights, run: Run) -> None:
    """Check that a file's weights fit the network that a run trained.

    Raises:
        BadRequest: they do not.
    """
    network = build_teacher(run.student, run.data.num_classes, run.data.mean, run.data.std, run.data.image_size)
    load_into(network, weights, name=run.student)
