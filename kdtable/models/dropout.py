"""Dropout without a running generator: independent of what else trains, and the same after a restart.

The mask is computed on the device from a seed and a count of batches, so that a CUDA graph can record it. For a shard
it equals the whole batch's mask at the shard's rows, which :func:`on_shard` declares.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

#: Constants of splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
_STEP: Final = 0x9E3779B97F4A7C15 - 2**64
_FIRST: Final = 0xBF58476D1CE4E5B9 - 2**64
_SECOND: Final = 0x94D049BB133111EB - 2**64

_BITS: Final = 24  # per draw


@dataclass(frozen=True, slots=True)
class Rows:
    """A shard of a batch: its first row, and the number of rows of the whole batch."""

    first: int
    whole: int


#: The shard that the networks of this thread run on; ``None`` for a whole batch.
_SHARD: ContextVar[Rows | None] = ContextVar("shard", default=None)


@contextmanager
def on_shard(first: int, whole: int) -> Iterator[None]:
    """Declare that networks in this context run on the rows from ``first`` of a batch of ``whole`` images."""
    token = _SHARD.set(Rows(first, whole))
    try:
        yield
    finally:
        _SHARD.reset(token)


def shard_rows() -> Rows | None:
    """The shard that networks run on; ``None`` for a whole batch."""
    return _SHARD.get()


def dropped(x: Tensor, p: float, seed: int, batches: Tensor) -> Tensor:
    """``x`` with each element set to 0 with probability ``p``, and the others divided by 1 - ``p``.

    Args:
        x: (B, ...), one row per image.
        p: probability in [0, 1).
        seed: the network's seed, below 2^62.
        batches: number of batches seen, an int64 scalar on the device of ``x``. Each has its own mask.
    """
    stream = _mixed(batches * _STEP + seed)
    rows = shard_rows()
    first = rows.first * x[:1].numel() if rows else 0
    draws = _mixed(stream + torch.arange(first, first + x.numel(), device=x.device) * _STEP)
    kept = _shifted(draws, 64 - _BITS) >= round(p * 2**_BITS)
    thinned: Tensor = x * kept.view(x.shape) / (1 - p)
    return thinned


def _mixed(z: Tensor) -> Tensor:
    """The output function of splitmix64; int64 arithmetic wraps."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    mixed: Tensor = z ^ _shifted(z, 31)
    return mixed


def _shifted(z: Tensor, bits: int) -> Tensor:
    """``z`` shifted right as an unsigned number."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted
