"""Files that are either whole or not there, and locks between processes."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def replace_durably(temporary: Path, final: Path) -> None:
    """Move ``temporary`` over ``final`` in the same folder; a power cut leaves the old file or the new."""
    _sync(temporary)
    os.replace(temporary, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_whole(final: Path) -> Iterator[BinaryIO]:
    """A file open for writing that becomes ``final`` at the end of the block, and vanishes on an error.

    The folder is made when it is missing.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
        replace_durably(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads; ``waiting`` is told if one has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
