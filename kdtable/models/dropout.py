"""Dropout that draws from no running generator: the same whatever else is trained, and after a restart.

The mask is computed on the device from numbers that are there, so that a step can be recorded. A process that has a
share of a batch drops what one process drops of these images: whoever shows a network a share says which rows it is.
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

_BITS: Final = 24  # of a draw


@dataclass(frozen=True, slots=True)
class Rows:
    """Some of the rows of a batch: which is the first, and how many the whole batch has."""

    first: int
    whole: int


#: What the networks that this thread runs are shown, if it is a share of a batch.
_SHOWN: ContextVar[Rows | None] = ContextVar("shown", default=None)


@contextmanager
def showing(first: int, whole: int) -> Iterator[None]:
    """Networks that are run in here are shown the rows from ``first`` on of a batch of ``whole`` images."""
    token = _SHOWN.set(Rows(first, whole))
    try:
        yield
    finally:
        _SHOWN.reset(token)


def shown() -> Rows | None:
    """The rows that a network is shown; ``None`` of a whole batch."""
    return _SHOWN.get()


def dropped(x: Tensor, share: float, seed: int, batches: Tensor) -> Tensor:
    """``x`` with ``share`` of its elements set to 0, and the others scaled up by what that takes away.

    Args:
        x: (B, ...), a row for each image.
        share: the probability of each element, in [0, 1).
        seed: of the network, below 2^62.
        batches: how many batches were seen, an int64 scalar on the device of ``x``. Each has a mask of its own.
    """
    stream = _mixed(batches * _STEP + seed)
    rows = shown()
    first = rows.first * x[:1].numel() if rows else 0
    draws = _mixed(stream + torch.arange(first, first + x.numel(), device=x.device) * _STEP)
    kept = _shifted(draws, 64 - _BITS) >= round(share * 2**_BITS)
    thinned: Tensor = x * kept.view(x.shape) / (1 - share)
    return thinned


def _mixed(z: Tensor) -> Tensor:
    """splitmix64's output function; int64 arithmetic wraps."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    mixed: Tensor = z ^ _shifted(z, 31)
    return mixed


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, as an unsigned number."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted
