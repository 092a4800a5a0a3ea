"""Random draws of methods during training: for shards and micro-batches, and the generator's state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdtable import seeding
from kdtable.data.stream import Batch
from kdtable.methods.base import Setting

#: Draws per image of a batch, and draws that all its images share.
Draws = tuple[Tensor, Tensor]


def draws_below(
    limit: int, of_image: tuple[int, ...], of_batch: tuple[int, ...], batch: Batch, setting: Setting
) -> Draws:
    """Uniform int64 below ``limit``: (B, *of_image) for the images of this shard, and ``of_batch``.

    Every rank draws for the whole batch, so that all generators keep the state that a single process would have.
    """
    generator = setting.generator
    each, every = (
        torch.randint(limit, size, generator=generator, device=generator.device)
        for size in ((batch.whole, *of_image), of_batch)
    )
    if len(batch.labels) < batch.whole:
        each = each[setting.ranks.shard(batch.whole)].clone()  # a slice would keep the whole batch's draws in memory
    return each, every


class MicroBatchDraws:
    """Draws for a shard by stage, which its micro-batches take one after the other."""

    def __init__(self, drawn: Mapping[int, Draws] | None = None) -> None:
        self._left = dict(drawn or {})

    def next(self, count: int) -> dict[int, Draws]:
        """The draws of the next ``count`` images; empty if none are left."""
        left = {name: (each, every) for name, (each, every) in self._left.items() if len(each)}
        self._left = {name: (each[count:], every) for name, (each, every) in left.items()}
        return {name: (each[:count], every) for name, (each, every) in left.items()}


def generator_state(generator: torch.Generator) -> dict[str, Any]:
    """The generator's state as part of a checkpoint."""
    return {"device": generator.device.type, "state": generator.get_state()}


def restore_generator(generator: torch.Generator, state: dict[str, Any]) -> None:
    """Continue the stream that :func:`generator_state` saved.

    A generator cannot continue the stream of another kind of device: there it begins a new stream.
    """
    if state["device"] == generator.device.type:
        generator.set_state(state["state"])
    else:
        generator.manual_seed(seeding.derive("continued", generator.initial_seed()))
