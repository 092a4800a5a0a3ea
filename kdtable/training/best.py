"""Keep a student's weights of the epoch that held-out images choose, and measure the test set with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdtable.methods.base import Method

#: Tensors by name.
Tensors = dict[str, Tensor]


class BestWeights:
    """A copy of the weights that measuring reads: the student's, and the method's where it measures more than that.

    Args:
        student: the network.
        method: its method.
    """

    def __init__(self, student: nn.Module, method: Method) -> None:
        self._method = [] if type(method).predicted is Method.predicted else [method]
        self.keep(student)

    @property
    def student(self) -> Tensors:
        """The kept weights of the student."""
        return self._kept[0]

    def keep(self, network: nn.Module) -> None:
        """Keep the present weights of the network that is measured: the student, or its moving average."""
        self._kept = [_copies(module) for module in (network, *self._method)]

    def state(self) -> dict[str, Any]:
        """The kept weights, for a checkpoint."""
        return dict(zip(("best_student", "best_method"), self._kept, strict=False))

    def load_state(self, state: dict[str, Any]) -> None:
        """Load kept weights; the caller has checked names and shapes."""
        for kept, name in zip(self._kept, ("best_student", "best_method"), strict=False):
            for key, tensor in kept.items():
                tensor.copy_(state[name][key])

    @contextmanager
    def in_place(self, network: nn.Module) -> Iterator[None]:
        """Put the kept weights in place of the present ones of the network that is measured, inside the block."""
        modules = [network, *self._method]
        present = [_copies(module) for module in modules]
        _load(modules, self._kept)
        try:
            yield
        finally:
            _load(modules, present)


def _load(modules: list[nn.Module], weights: list[Tensors]) -> None:
    for module, tensors in zip(modules, weights, strict=True):
        module.load_state_dict(tensors, strict=False)


@torch.no_grad()
def _copies(module: nn.Module) -> Tensors:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}
