"""Tasks: what a batch is, how a network runs on it, and what is measured.

The table below is the registry; a task that is not in it is unknown.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from kdtable.errors import unknown

if TYPE_CHECKING:
    from kdtable.tasks.base import Task

TASKS: Final[dict[str, str]] = {
    "classification": "kdtable.tasks.classification:Classification",
}


def get(name: str) -> "type[Task]":
    """The class of task ``name``; imported when it is asked for.

    Raises:
        BadRequest: no such task; names the nearest ones.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    module, _, attribute = TASKS[name].partition(":")
    task: type[Task] = getattr(import_module(module), attribute)
    return task
