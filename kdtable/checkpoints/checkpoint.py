"""Checkpoints on disk: atomic writes, safe reads, and recovery from the previous one."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kdtable.distributed import ran_out_of_memory
from kdtable.files.atomic import set_aside, written_whole
from kdtable.files.tensor_file import BadTensorFile, TensorFile

#: Far more than any run needs: CRD's banks for ImageNet, with a resnet152, take 2 GB.
MAX_BYTES: Final = 8 * 1024**3


class BadCheckpoint(Exception):
    """A checkpoint that cannot be read."""


class NoAccess(BadCheckpoint):
    """A checkpoint that cannot be opened, and may be intact."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The result of :func:`recover`.

    Attributes:
        state: the newest good checkpoint's; ``None`` if there is none.
        bad: a sentence for each bad file, with its new name.
    """

    state: dict[str, Any] | None
    bad: tuple[str, ...]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically: a temporary file, fsync, rename, fsync of the folder."""
    with written_whole(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # When torch's writer is interrupted, its own error hides the cause.
            if isinstance(error.__context__, KeyboardInterrupt | OSError):
                raise error.__context__ from None
            raise


def step_back(path: Path) -> None:
    """Rename the checkpoint at ``path``, if there is one, to :func:`previous`, before the next one is written.

    If the process is killed in between, :func:`recover` finds the previous one.
    """
    if path.exists():
        os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """Path of the checkpoint before the one at ``path``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def discard(path: Path) -> None:
    """Delete the checkpoint and the previous one."""
    path.unlink(missing_ok=True)
    previous(path).unlink(missing_ok=True)


def recover(
    path: Path,
    run_id: str,
    fresh: Mapping[str, Any] | None = None,
    move: Callable[[Path], Path] = set_aside,
    use: Callable[[dict[str, Any]], object] = lambda state: None,
    older: Iterable[Path] = (),
) -> Recovered:
    """Find a run's newest good checkpoint: the one at ``path``, the previous one, or an older one.

    The first two are set aside if they are bad. Older ones stay, and are replaced when their epoch is trained.

    Args:
        path: of the newest checkpoint.
        run_id: the run that it must belong to.
        fresh: as for :func:`load`.
        move: sets a file aside and returns its new path.
        use: resumes from a state. If it raises, the checkpoint is bad; it must then have changed nothing.
        older: further checkpoints, the newest first.

    Raises:
        NoAccess: a checkpoint cannot be opened; starting over would lose what it holds.
        MemoryError, RuntimeError: memory ran out.
    """
    bad = []
    newest = (path, previous(path))
    for file in (*newest, *older):
        if not file.exists():
            continue
        try:
            state = _used(file, run_id, fresh, use)
        except NoAccess:
            raise
        except BadCheckpoint as error:
            bad.append(f"{error}; it was set aside as {move(file).name}" if file in newest else str(error))
        else:
            return Recovered(state, tuple(bad))
    return Recovered(None, tuple(bad))


def _used(
    path: Path, run_id: str, fresh: Mapping[str, Any] | None, use: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    state = load(path, fresh)
    if state.get("run") != run_id:
        raise BadCheckpoint(f"{path} belongs to another run")
    with fitting(path):
        use(state)
    return state


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Blame the checkpoint at ``path`` for any error in the block, except when memory runs out.

    Raises:
        BadCheckpoint: the checkpoint does not fit its run.
    """
    try:
        yield
    except Exception as error:
        # Only these types: other errors may quote the file.
        if isinstance(error, MemoryError | RuntimeError) and ran_out_of_memory(error):
            raise
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        first, _, _ = what.partition("\n")
        reason = first[:200] if first.isprintable() else repr(first[:200])
        raise BadCheckpoint(f"{path} does not fit its run: {reason}") from error


def load(path: Path, fresh: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU; never runs code from it.

    Args:
        path: the file.
        fresh: the run's state at its start. The tensors of the student, its average and the method must have its
            shapes and dtypes, which is checked before they take memory.

    Raises:
        BadCheckpoint: the file is truncated, damaged, too large, has other shapes, or holds objects other than tensors
            and plain values.
        NoAccess: it does not exist, or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            content = TensorFile(file, MAX_BYTES)
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
    for part in sorted(fresh.keys() & {"student", "method", "average", "best_student", "best_method"}):
        expected, given = fresh[part], described.get(part)
        if not isinstance(given, dict):
            raise BadCheckpoint(f"{path} has no {part}")
        if surplus := given.keys() - expected.keys():
            raise BadCheckpoint(
                f"{path} does not fit its run: its {part} has a stranger, {str(next(iter(surplus)))[:100]!r}"
            )
        for key, value in expected.items():
            if isinstance(value, Tensor) and not _fits(given.get(key), value):
                raise BadCheckpoint(f"{path} does not fit its run: {part} {key} is of another shape or type")


def _fits(given: object, expected: Tensor) -> bool:
    return isinstance(given, Tensor) and given.shape == expected.shape and given.dtype == expected.dtype
