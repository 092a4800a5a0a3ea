"""Checkpoints on disk: written whole or not at all, read without trusting them, kept beside the one before."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kdtable.atomic import set_aside, written_whole
from kdtable.tensorfile import BadTensorFile, Stored, TensorFile

#: No run here comes near it: CRD's banks for ImageNet, with a resnet152, take 2 GB.
MAX_BYTES: Final = 8 * 1024**3


class BadCheckpoint(Exception):
    """A checkpoint that cannot be read."""


class NoAccess(BadCheckpoint):
    """A checkpoint that may be good, but cannot be opened."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found of a run.

    Attributes:
        state: of the newest checkpoint that is good; ``None`` if there is none.
        bad: a sentence for each file that was not, and where it was moved to.
    """

    state: dict[str, Any] | None
    bad: tuple[str, ...]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``: a temporary file, fsync, rename, fsync of the folder."""
    with written_whole(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # What torch's writer says when it cannot end the file hides what cut it short.
            if isinstance(error.__context__, KeyboardInterrupt | OSError):
                raise error.__context__ from None
            raise


def step_back(path: Path) -> None:
    """Make the checkpoint at ``path``, if there is one, the :func:`previous` one: its place is about to be taken.

    A process that is killed in between leaves the previous one alone, which :func:`recover` finds.
    """
    if path.exists():
        os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def discard(path: Path) -> None:
    """Remove the checkpoint and the one before."""
    path.unlink(missing_ok=True)
    previous(path).unlink(missing_ok=True)


def recover(
    path: Path,
    run_id: str,
    fresh: Mapping[str, Any] | None = None,
    move: Callable[[Path], Path] = set_aside,
) -> Recovered:
    """The newest good checkpoint of a run, of the one at ``path`` and the one before; bad ones are set aside.

    Args:
        path: of the newest checkpoint.
        run_id: the run that it must belong to.
        fresh: as for :func:`load`.
        move: sets a file aside; gives where it is now.

    Raises:
        NoAccess: one is there that cannot be opened; to begin again would throw away what it may hold.
    """
    bad = []
    for file in (path, previous(path)):
        if not file.exists():
            continue
        try:
            state = load(file, fresh)
            if state.get("run") != run_id:
                raise BadCheckpoint(f"{file} belongs to another run")
        except NoAccess:
            raise
        except BadCheckpoint as error:
            bad.append(f"{error}; it was set aside as {move(file).name}")
        else:
            return Recovered(state, tuple(bad))
    return Recovered(None, tuple(bad))


def load(path: Path, fresh: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU; no code in it is ever run.

    Args:
        path: the file.
        fresh: the state of the run at its start. The student's tensors, and those of the method that are there from
            the start, must have its shapes and dtypes, which is checked before they take memory.

    Raises:
        BadCheckpoint: the file is truncated, damaged, too large, of another shape, or holds anything but tensors and
            plain values.
        NoAccess: it is not there, or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise BadCheckpoint(f"{path} is refused: it has {size} bytes, more than any checkpoint ({MAX_BYTES})")
            content = TensorFile(file)
            _check(path, content.described, fresh or {})
            content.check()
            state: dict[str, Any] = content.load()
    except BadTensorFile as error:
        raise BadCheckpoint(f"{path} {error}") from error
    except OSError as error:
        raise NoAccess(f"{path} cannot be read ({error.strerror})") from error
    return state


def _check(path: Path, described: Any, fresh: Mapping[str, Any]) -> None:
    history = described.get("history") if isinstance(described, dict) else None
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        raise BadCheckpoint(f"{path} is not a checkpoint of a run")
    for part in ("student", "method"):
        expected, given = fresh.get(part, {}), described.get(part)
        if expected and not isinstance(given, dict):
            raise BadCheckpoint(f"{path} has no {part}")
        for key, value in expected.items():
            if isinstance(value, Tensor) and not _fits(given.get(key), value):
                raise BadCheckpoint(f"{path} does not fit its run: {part} {key} is of another shape or type")


def _fits(given: object, expected: Tensor) -> bool:
    return isinstance(given, Stored) and given.shape == tuple(expected.shape) and given.dtype == expected.dtype
