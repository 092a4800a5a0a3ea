"""Networks of which only names and shapes are meaningful."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from kdtable import models, seeding
from kdtable.models.network import Network


def uninitialised(name: str, num_classes: int, image_size: int = 32) -> Network:
    """A network with arbitrary weights; initialisation takes most of the time to build one.

    Raises:
        RuntimeError, ValueError: as of :func:`kdtable.models.build`.
    """
    with seeding.global_stream("shapes"), _SkipInitialisation():
        return models.build(name, num_classes, image_size=image_size)


class _SkipInitialisation(TorchFunctionMode):
    """Skip the random initialisation of tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))
