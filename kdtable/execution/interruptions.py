"""How worker processes meet Ctrl-C and the end of their command."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Final

#: Seconds that a process has to release its runs when its command is gone.
PATIENCE: Final = 60.0


@contextmanager
def deaf_to_interruptions() -> Iterator[None]:
    """Make processes started in the block ignore Ctrl-C, which a terminal sends to all of a command's processes.

    This process receives it at the end of the block.
    """
    resource_tracker.ensure_running()  # else the first process starts it in the block, and it unblocks the signal
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def end_with_parent() -> None:
    """Interrupt this process when the command that started it is gone; kill it if it does not end in time."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)  # it hangs on a device, or on a rank that is gone
