"""Training teachers: plain runs of the teacher's network, whose students become teachers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdtable import models
from kdtable.errors import BadRequest
from kdtable.execution.recorder import STUDENT
from kdtable.plan import Cell, Request, resolve
from kdtable.runs import TeacherRef
from kdtable.store import Store
from kdtable.teachers.manifest import published
from kdtable.teachers.places import home, teacher_path
from kdtable.training import checkpoint


def plan_teachers(names: Sequence[str], data: str | None, seed: int, changes: Request) -> list[Cell]:
    """The runs that train networks alone: the ``vanilla`` row of each.

    A published teacher is trained by the recipe, and unless ``data`` says otherwise on the data set, of the paper
    that published it; any other network by the default paper's.

    Args:
        names: networks, or data set and network (``cifar10/resnet56_a``).
        data: a data set as the user names it.
        seed: of everything that is random.
        changes: what the user changed of the recipe.

    Raises:
        BadRequest: an unknown name, or a value that cannot be used.
    """
    cells: list[Cell] = []
    for name in names:
        dataset, _, text = name.rpartition("/")
        network = models.canonical(text)
        entry = next((e for e in published().values() if e.network == network and dataset in ("", e.dataset)), None)
        request = replace(
            changes,
            pairs=[f"{network}:{network}"],
            methods=["vanilla"],
            seeds=[seed],
            data=data or dataset or None,
            paper=entry.paper if entry else changes.paper,
        )
        cells += resolve(request, _no_teacher)
    return cells


def check_room(cells: Sequence[Cell], folder: Path) -> None:
    """Refuse to train a teacher whose place is taken by another file.

    Raises:
        BadRequest: a fetched teacher, or one trained otherwise, is there.
    """
    from kdtable.teachers.files import read_weights

    for run in (cell.run for cell in cells):
        there = teacher_path(folder, run.data.key, run.student)
        if there is not None and read_weights(there).run != run.id:
            raise BadRequest(f"{there} is another teacher: move it away, or name another --teachers-dir")


def _no_teacher(network: str, data: object) -> TeacherRef:
    raise BadRequest(f"{network} is trained alone")


def install(cells: Sequence[Cell], results: Path, folder: Path) -> list[Path]:
    """Put the trained networks where plans look for teachers; those whose run is not done are left out.

    Raises:
        BadRequest: a done run's network cannot be read.
    """
    from kdtable.teachers.files import save_weights

    store = Store(results, create=False)
    statuses = store.statuses(cell.run.id for cell in cells)
    installed = []
    for cell in cells:
        run = cell.run
        if statuses.get(run.id) != "done":
            continue
        path = home(folder, run.data.key, run.student)
        try:
            trained = checkpoint.load(store.run_folder(run.id) / STUDENT)
        except checkpoint.BadCheckpoint as error:
            raise BadRequest(f"the trained network is gone: {error}") from error
        save_weights(
            path,
            trained["student"],
            network=run.student,
            num_classes=run.data.num_classes,
            mean=run.data.mean,
            std=run.data.std,
            run=run.id,
            data=run.data.key,
        )
        installed.append(path)
    return installed
