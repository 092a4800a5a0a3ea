"""Image sets by name, and the stream of augmented batches.

Importing this package and resolving a name (`resolve`) do not import torch; what holds tensors is imported on first
use.

Example:
    spec = resolve("cifar100")
    images = load(spec, Path("data"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdtable.data.names import resolve
from kdtable.data.spec import DataSpec

if TYPE_CHECKING:
    from kdtable.data.sets import load
    from kdtable.data.stream import Batch

__all__ = ["Batch", "DataSpec", "load", "resolve"]


def __getattr__(name: str) -> Any:
    if name in ("Batch", "load"):
        return getattr(import_module("kdtable.data.sets"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
