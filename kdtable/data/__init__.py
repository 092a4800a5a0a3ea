"""Image sets by name, and the stream of augmented batches.

Importing this package and resolving a name (`resolve`) do not import torch; what holds tensors is imported on first
use.

Example:
    spec = resolve("cifar100")
    images = load(spec, Path("data"))
"""

from importlib import import_module
from typing import TYPE_CHECKING

from kdtable.data.names import resolve
from kdtable.data.spec import DataSpec

if TYPE_CHECKING:
    from kdtable.data.protocols import Images
    from kdtable.data.sets import ImageSet, load
    from kdtable.data.stream import Batch, Stream, evaluation_batches
else:
    _HOMES = {
        "ImageSet": "kdtable.data.sets",
        "Images": "kdtable.data.sets",
        "load": "kdtable.data.sets",
        "Batch": "kdtable.data.stream",
        "Stream": "kdtable.data.stream",
        "evaluation_batches": "kdtable.data.stream",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


__all__ = ["Batch", "DataSpec", "ImageSet", "Images", "Stream", "evaluation_batches", "load", "resolve"]
