"""Atomic writes, and locks between processes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout


def replace_durably(temporary: Path, final: Path) -> None:
    """Move ``temporary`` over ``final`` in the same folder; after a power cut there is the old file or the new one."""
    sync(temporary)
    os.replace(temporary, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_whole(final: Path, *, alone: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes ``final`` at the end of the block, and is deleted on an error.

    Creates the folder if it is missing.

    Example:
        with written_whole(path) as file:
            file.write(content)

    Args:
        final: the file.
        alone: whether the caller holds a lock that excludes other writers. The temporary name is then fixed, so that
            the next process overwrites what a killed one left.

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
        # On a full disk torch raises its own error, whose context has the reason.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno is not None:
            raise OSError(cause.errno, os.strerror(cause.errno), str(final)) from error
        raise
    finally:
        with suppress(OSError):  # keep the first error, even if the folder is read-only by now
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads; call ``waiting`` first if it is taken."""
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
    """Rename an unusable file to ``NAME.corrupt``, or ``NAME.corrupt-2`` and so on; return the new path."""
    names = chain([f"{path.name}.corrupt"], (f"{path.name}.corrupt-{number}" for number in count(2)))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.replace(aside)
    return aside
