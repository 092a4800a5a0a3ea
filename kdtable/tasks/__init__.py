"""Tasks: what a batch is, how a network runs on it, and what is measured. ``TASKS`` is the registry.

task = get("classification")(images, recipe, seed, precision)
task.evaluate(network)  # {"top1": ..., "top5": ...}
"""

from typing import TYPE_CHECKING, Final

from kdtable.errors import unknown
from kdtable.plugins import Registry

if TYPE_CHECKING:
    from kdtable.tasks.base import Task

#: The task of a run that names none.
DEFAULT: Final = "classification"

TASKS: Final[Registry["type[Task]"]] = Registry(
    "kdtable.tasks",
    {
        DEFAULT: "kdtable.tasks.classification:Classification",
        "detection": "kdtable.tasks.detection:Detection",
        "self-supervised": "kdtable.tasks.self_supervised:SelfSupervised",
        "two-views": "kdtable.tasks.self_supervised:TwoViews",
    },
)


def get(name: str) -> "type[Task]":
    """Import and return the class of the task ``name``.

    Raises:
        BadRequest: unknown task; the message names similar ones.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
