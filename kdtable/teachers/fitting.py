"""Find networks by the names and shapes of their tensors."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from kdtable import models
from kdtable.models.uninitialised import uninitialised

#: Every network here has at least so many tensors.
_FEWEST: Final = 20


def fitting_networks(given: Mapping[str, Tensor]) -> list[str]:
    """Canonical names of the networks whose tensors have these names and shapes, for any number of classes."""
    classifiers = [value for value in given.values() if value.dim() == 2]
    if not classifiers or len(given) < _FEWEST:
        return []
    classes = len(classifiers[-1])
    shapes = {key: value.shape for key, value in given.items() if not key.endswith("num_batches_tracked")}
    alike: dict[str, bool] = {}  # by class: whether its first network has the same top-level modules
    found = []
    for name, entry in models.NETWORKS.items():
        if alike.get(entry.cls, "backbone" in _modules(shapes) or entry.task != "detection"):
            own = _shapes(name, classes)
            alike.setdefault(entry.cls, _modules(own) == _modules(shapes))
            found += [name] if own == shapes else []
    return found


def _modules(shapes: Mapping[str, torch.Size]) -> set[str]:
    return {key.partition(".")[0] for key in shapes}


def _shapes(name: str, classes: int) -> dict[str, torch.Size]:
    try:
        state = uninitialised(name, classes).state_dict()
    except (RuntimeError, ValueError):  # too many classes
        return {}
    return {key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")}
