"""Ctrl-C, and the end of the command, as worker processes meet them."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Final

#: Seconds in which a process whose command is gone can release what it holds.
PATIENCE: Final = 60.0


@contextmanager
def deaf_to_interruptions() -> Iterator[None]:
    """Processes that are started here never hear Ctrl-C, of which a terminal tells all of a command's processes.

    This one hears it at the end of the block.
    """
    resource_tracker.ensure_running()  # which the first process would start in the block, and then unblock the signal
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def end_with_parent() -> None:
    """Interrupt this process when the command that started it is gone, and end it if that is not heard."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)  # it waits for a device, or for a rank that is gone
