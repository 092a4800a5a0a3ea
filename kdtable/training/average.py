"""A moving average of the student's weights, which is measured and kept in their place.

After every step of a stage, with the weights w and the average a:

    a <- decay a + (1 - decay) w

As in torchvision's reference training, batch-norm statistics are averaged like weights, and up to the first step after
the warm-up epochs the average is a copy of the student. Here it moves after every step, by the decay as it is given:
torchvision's moves after every 32nd, and scales 1 - decay with the batch size. Whole numbers are copied.
"""

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kdtable.recipes.recipe import Recipe


class Average:
    """The moving average of a student over the steps of a stage.

    Args:
        student: the network; it is copied.
        recipe: the stage's, with ``ema`` above 0.

    Attributes:
        network: the averaged network, in eval mode.
    """

    def __init__(self, student: nn.Module, recipe: Recipe) -> None:
        self.network = copy.deepcopy(student).eval().requires_grad_(False)
        self._mean = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
        self._warmup = recipe.warmup_epochs
        self._epoch, self._copies = 1, True

    def tensors(self) -> list[Tensor]:
        """All that an update changes in place."""
        return list(_tensors(self.network))

    def begin_epoch(self, epoch: int) -> None:
        """Set the stage's epoch, from 1."""
        self._epoch, self._copies = epoch, epoch <= self._warmup + 1

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Take in the student after a step."""
        for averaged, current in _by_kind(self.network, student):
            if self._copies or not averaged[0].is_floating_point():
                torch._foreach_copy_(averaged, current)
            else:
                self._mean(averaged, current, None)
        self._copies = self._epoch <= self._warmup


def _by_kind(averaged: nn.Module, student: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The tensors of both networks, type by type."""
    kinds: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for pair in zip(_tensors(averaged), _tensors(student), strict=True):
        kinds.setdefault(pair[0].dtype, []).append(pair)
    for pairs in kinds.values():
        yield [own for own, _ in pairs], [current for _, current in pairs]


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())
