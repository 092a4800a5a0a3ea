"""Tasks: what a batch is, how a network runs on it, and what is measured. ``TASKS`` is the registry.

task = get("classification")(images, recipe, seed, precision)
task.evaluate(network)  # {"top1": ..., "top5": ...}
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from kdtable import methods
from kdtable.errors import BadRequest, unknown
from kdtable.plugins import Registry

if TYPE_CHECKING:
    from kdtable.methods.base import Method
    from kdtable.tasks.base import Task

#: The task of a run that names none.
DEFAULT: Final = "classification"

TASKS: Final[Registry["type[Task]"]] = Registry(
    "kdtable.tasks",
    {
        DEFAULT: "kdtable.tasks.classification:Classification",
        "self-supervised": "kdtable.tasks.self_supervised:SelfSupervised",
        "two-views": "kdtable.tasks.self_supervised:TwoViews",
    },
)

#: Methods that are another class under a task.
_OWN: Final = {
    "self-supervised": {
        "vanilla": "kdtable.methods.parts.pretraining:Untrained",
        "moco": "kdtable.methods.moco:MoCo",
        "mgd": "kdtable.methods.moco_mgd:MoCoMGD",
        "seed": "kdtable.methods.seed:SEED",
    },
}


def get(name: str) -> "type[Task]":
    """Import and return the class of the task ``name``.

    Raises:
        BadRequest: unknown task; the message names similar ones.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def method(task: str, name: str) -> "type[Method]":
    """The class of a method under a task.

    Raises:
        BadRequest: there is no such method, or it is for another task.
    """
    own = _OWN.get(task)
    if own is not None and name in own:
        module, _, kind = own[name].partition(":")
        found: type[Method] = getattr(import_module(module), kind)
        return found
    found = methods.get(name)
    if own is not None:
        raise BadRequest(f"method {name} is not for students without labels: use one of {', '.join(own)}")
    if found.task not in ("", task):
        raise BadRequest(f"method {name} trains without labels: use it with --paper moco-cifar or mgd-unsup")
    return found
