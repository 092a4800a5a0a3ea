"""A run's own generator, for methods that draw while they train: its state, and draws for shares of a batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdtable import seeding
from kdtable.data.stream import Batch
from kdtable.methods.base import Setting

#: For each image of a batch, and for all of them.
Draws = tuple[Tensor, Tensor]


def draws_below(
    limit: int, of_image: tuple[int, ...], of_batch: tuple[int, ...], batch: Batch, setting: Setting
) -> Draws:
    """Uniform int64 from 0 to ``limit`` - 1, of these shapes; (B, *of_image) has the rows of a share of a batch.

    Every process draws for the whole batch: the generators stay in one state, which is that of one process.
    """
    generator = setting.generator
    each, every = (
        torch.randint(limit, size, generator=generator, device=generator.device)
        for size in ((batch.whole, *of_image), of_batch)
    )
    if len(batch.labels) < batch.whole:
        each = each[setting.ranks.shard(batch.whole)].clone()  # a slice would keep all of it in memory
    return each, every


class MicroBatchDraws:
    """What was drawn by name for a share of a batch, for its parts to take one after the other."""

    def __init__(self, drawn: Mapping[int, Draws] | None = None) -> None:
        self._left = dict(drawn or {})

    def next(self, count: int) -> dict[int, Draws]:
        """What the next ``count`` images take; nothing where nothing is left."""
        left = {name: (each, every) for name, (each, every) in self._left.items() if len(each)}
        self._left = {name: (each[count:], every) for name, (each, every) in left.items()}
        return {name: (each[:count], every) for name, (each, every) in left.items()}


def generator_state(generator: torch.Generator) -> dict[str, Any]:
    """What continues the generator's stream, as part of a checkpoint."""
    return {"device": generator.device.type, "state": generator.get_state()}


def restore_generator(generator: torch.Generator, state: dict[str, Any]) -> None:
    """Continue the stream of what :func:`generator_state` gave.

    A generator cannot continue another kind of device's stream: there the draws begin a stream of their own.
    """
    if state["device"] == generator.device.type:
        generator.set_state(state["state"])
    else:
        generator.manual_seed(seeding.derive("continued", generator.initial_seed()))
