"""Python's garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(*, last: bool = False) -> Iterator[None]:
    """Disable garbage collection inside the block: it takes a third of the time when very many rows are read.

    Args:
        last: the process ends after the block. Then Python need not look at every object again, a quarter of a second
            after pandas was imported. Close what must be closed.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if last:
            gc.freeze()
        if enabled:
            gc.enable()
