"""Methods of other tasks than classification. Imports no torch.

Most have a name that classification has too, and stand for the same idea: on detectors on FPN levels, proposals or
anchors. KD is a method like the others there, so ``fitnet+kd`` is a combination of two.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final

from kdtable.errors import BadRequest
from kdtable.methods.combinations import PLAIN, combination

if TYPE_CHECKING:
    from kdtable.methods.base import Method

#: By task and name, where each is.
ON_TASKS: Final[Mapping[str, Mapping[str, str]]] = {
    "detection": {
        "vanilla": "kdtable.methods.detection.vanilla:Vanilla",
        "kd": "kdtable.methods.detection.kd:KD",
        "fitnet": "kdtable.methods.detection.fitnet:FitNet",
        "fgfi": "kdtable.methods.detection.fgfi:FGFI",
        "reviewkd": "kdtable.methods.detection.reviewkd:ReviewKD",
        "dkd": "kdtable.methods.detection.dkd:DKD",
        "mgd": "kdtable.methods.detection.mgd:MGD",
    },
    "self-supervised": {
        "vanilla": "kdtable.methods.parts.pretraining:Untrained",
        "moco": "kdtable.methods.moco:MoCo",
        "mgd": "kdtable.methods.moco_mgd:MoCoMGD",
        "seed": "kdtable.methods.seed:SEED",
    },
}


#: Tasks whose methods can be joined by ``+``; without labels each has a stage of its own.
COMBINING: Final = frozenset({"detection"})

#: What to do about a method of a task that the request is not for.
_INSTEAD: Final = {
    "detection": "is for detectors: leave it out, or name a data set with boxes",
    "self-supervised": "trains without labels: use it with --paper moco-cifar or mgd-unsup",
}


def elsewhere(name: str) -> str:
    """What to do about a method that only other tasks than classification have; "" if none has it."""
    return next((_INSTEAD[task] for task, known in ON_TASKS.items() if name in known), "")


def parts_of(name: str, task: str) -> tuple[str, ...]:
    """The methods of a task that a name stands for, in our order: ``fitnet`` and ``kd`` of ``fitnet+kd``.

    Raises:
        BadRequest: the task has no such method.
    """
    known = ON_TASKS[task]
    if name in known:
        return (name,)
    parts = [part for part in name.split("+") if part != "ls"]
    if strange := next((part for part in parts if part not in known), None):
        raise BadRequest(f"method '{strange}' is not one of {task}, whose methods are {', '.join(known)}")
    if task not in COMBINING:
        raise BadRequest(f"method '{name}': methods of {task} are not combined; name one of {', '.join(known)}")
    found = combination(name, known)
    methods = (*found.methods, *(suffix for suffix in found.suffixes if suffix in known))
    ours = "+".join(methods)
    if len(methods) > 1 and PLAIN in methods:
        raise BadRequest(f"method '{name}': {PLAIN} is the student alone, without a term to add; leave it out")
    if "ls" in found.suffixes:
        raise BadRequest(f"method '{name}': only classifiers' logits can be standardised; write {ours}")
    if ours != name:
        raise BadRequest(f"unknown method '{name}': here it is called {ours}")
    return methods


def class_of(name: str, task: str) -> "type[Method]":
    """The class of a method of a task, or of several, joined by ``+``.

    Raises:
        BadRequest: see :func:`parts_of`.
    """
    kinds = {part: _loaded(ON_TASKS[task][part]) for part in parts_of(name, task)}
    if len(kinds) == 1:
        return kinds[name]
    from kdtable.methods.combined import combined

    return combined(tuple(kinds.items()))


def _loaded(target: str) -> "type[Method]":
    module, _, name = target.partition(":")
    found: type[Method] = getattr(import_module(module), name)
    return found
