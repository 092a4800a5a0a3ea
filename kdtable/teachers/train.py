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
from kdtable.teachers.places import home
from kdtable.training import checkpoint


def plan_teachers(names: Sequence[str], data: str | None, seed: int, changes: Request | None) -> tuple[Cell, ...]:
    """The runs that train networks alone: the ``vanilla`` row of each.

    Raises:
        BadRequest: an unknown name, or a value that cannot be used.
    """
    canonical = [models.canonical(name.rpartition("/")[2]) for name in names]
    base = changes or Request((), (), ())
    request = replace(
        base, pairs=[f"{name}:{name}" for name in canonical], methods=["vanilla"], seeds=[seed], data=data
    )
    return resolve(request, _no_teacher)


def _no_teacher(network: str, data: object) -> TeacherRef:
    raise BadRequest(f"{network} is trained alone")


def install(cells: Sequence[Cell], results: Path, folder: Path) -> list[Path]:
    """Put the trained networks where plans look for teachers; those whose run is not done are left out."""
    from kdtable.teachers.files import save_weights

    store = Store(results, create=False)
    statuses = store.statuses(cell.run.id for cell in cells)
    installed = []
    for cell in cells:
        run = cell.run
        if statuses.get(run.id) != "done":
            continue
        path = home(folder, run.data.key, run.student)
        trained = checkpoint.load(store.run_folder(run.id) / STUDENT)
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
