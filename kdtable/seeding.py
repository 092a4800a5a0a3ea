"""Named random streams.

Every stream is seeded by its name, so random draws in one place do not affect another: a student's initial weights
do not depend on its teacher, nor its batches on the method.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(*parts: str | int) -> int:
    """A 63-bit seed from ``parts``, the same on every platform."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: str | int, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A new generator, seeded by ``parts``: ``generator("batches", seed, stage, epoch)``."""
    import torch

    return torch.Generator(device).manual_seed(derive(*parts))


@contextmanager
def global_stream(*parts: str | int) -> Iterator[None]:
    """Seed torch's global CPU generator by ``parts`` inside the block, then restore it.

    For library code that draws only from the global generator, such as default layer initialisation.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(*parts))
        yield
