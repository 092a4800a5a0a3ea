"""Files that are either whole or not there, and locks between processes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout


def replace_durably(temporary: Path, final: Path) -> None:
    """Move ``temporary`` over ``final`` in the same folder; a power cut leaves the old file or the new."""
    sync(temporary)
    os.replace(temporary, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_whole(final: Path, *, alone: bool = False) -> Iterator[BinaryIO]:
    """A file open for writing that becomes ``final`` at the end of the block, and vanishes on an error.

    The folder is made when it is missing.

    Args:
        final: the file.
        alone: whether a lock keeps all others from writing it. The file's name until it is whole is then always the
            same, so that what a killed process left is written over by the next one.

    Raises:
        OSError: it cannot be written; ``filename`` is ``final``.
    """
    temporary = final.with_name(f".{final.name}.{'part' if alone else uuid4().hex}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb" if alone else "xb") as file:
            yield file
        replace_durably(temporary, final)
    except (OSError, RuntimeError) as error:
        # torch hides what went wrong on a full disk behind an error of its own, of where in its archive it was.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno is not None:
            raise OSError(cause.errno, os.strerror(cause.errno), str(final)) from error
        raise
    finally:
        with suppress(OSError):  # as in a folder that is read-only by now; the first error is the one to tell
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads; ``waiting`` is called if one has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def set_aside(path: Path) -> Path:
    """Move a file that cannot be used out of the way, as ``NAME.corrupt``; an earlier one is not overwritten."""
    names = chain([f"{path.name}.corrupt"], (f"{path.name}.corrupt-{number}" for number in count(2)))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.replace(aside)
    return aside
