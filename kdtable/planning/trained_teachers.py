"""Plan the training of teachers: plain runs of the teacher's network."""

from collections.abc import Sequence
from dataclasses import replace

from kdtable import models, papers
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.request import FindTeacher, Request
from kdtable.planning.resolve import resolve
from kdtable.teachers.manifest import published


def plan_teachers(
    names: Sequence[str], data: str | None, seed: int, changes: Request, find_teacher: FindTeacher
) -> list[PlannedRun]:
    """The planned runs that train networks alone: the ``vanilla`` row of each.

    A published teacher uses the recipe, and by default the data set, of the paper that published it; any other network
    uses the default paper's.

    Args:
        names: networks, or data set and network (``cifar10/resnet56_a``).
        data: a data set as the user names it.
        seed: seed of all random numbers.
        changes: the user's changes; its ``paper`` is empty if the user names none.
        find_teacher: returns the weights that a network starts from, where its paper says so.

    Raises:
        BadRequest: an unknown name, or an unusable value.
    """
    planned_runs: list[PlannedRun] = []
    for name in names:
        dataset, _, text = name.rpartition("/")
        network = models.checked(text)
        usual = papers.default_paper(data or dataset)
        entry = next((e for e in published().values() if e.network == network and dataset in ("", e.dataset)), None)
        request = replace(
            changes,
            pairs=[f"{network}:{network}"],
            methods=["vanilla"],
            seeds=[seed],
            data=replace(changes.data, name=data or dataset or None),
            paper=changes.paper or (entry.paper if entry and entry.paper in papers.names() else usual),
        )
        planned_runs += resolve(request, find_teacher)
    return planned_runs
