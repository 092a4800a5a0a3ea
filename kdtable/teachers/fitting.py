"""Which networks have tensors of given names and shapes."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdtable import models, seeding

#: No network here has fewer tensors.
_FEWEST: Final = 20


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where a network would draw its start, which takes most of the time to build it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def fitting_networks(given: Mapping[str, Tensor]) -> list[str]:
    """Canonical names of the networks whose tensors have these names and shapes, whatever the number of classes."""
    classifiers = [value for value in given.values() if value.dim() == 2]
    if not classifiers or len(given) < _FEWEST:
        return []
    classes = len(classifiers[-1])
    shapes = {key: value.shape for key, value in given.items() if not key.endswith("num_batches_tracked")}
    alike: dict[str, bool] = {}  # by class: whether the parts of its first network have the names that are there
    found = []
    for name, entry in models.NETWORKS.items():
        if alike.get(entry.cls, True):
            own = _shapes(name, classes)
            alike.setdefault(entry.cls, _parts(own) == _parts(shapes))
            found += [name] if own == shapes else []
    return found


def _parts(shapes: Mapping[str, torch.Size]) -> set[str]:
    return {key.partition(".")[0] for key in shapes}


def _shapes(name: str, classes: int) -> dict[str, torch.Size]:
    with seeding.global_stream("shapes"), _Undrawn():
        try:
            state = models.build(name, classes).state_dict()
        except (RuntimeError, ValueError):  # no network has so many classes
            return {}
    return {key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")}
