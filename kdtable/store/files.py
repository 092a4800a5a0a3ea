"""The files of a run: ``runs/ID/`` in the results folder."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kdtable.errors import BadRequest

#: What a run resumes from; removed once the run is done.
CHECKPOINT: Final = "checkpoint.pt"
#: The checkpoint before, used when the newest is damaged.
PREVIOUS: Final = "checkpoint.previous.pt"
#: The trained student of a done run.
STUDENT: Final = "student.safetensors"
#: The traceback of a failed run.
ERROR: Final = "error.txt"
#: Folder of one checkpoint per epoch, with ``--keep all``.
EPOCHS: Final = "epochs"

#: Folder of what stays of results by other code, in a folder each, named by the code's hash.
OLDER: Final = "older"

#: Which weights of a done run stay.
KEEP: Final = ("last", "all", "none")

_UNFINISHED: Final = re.compile(
    r"\.(checkpoint\.pt|student\.safetensors|error\.txt)\..*|(checkpoint\.pt|student\.safetensors)\.[0-9a-f]{32}"
)


def check_keep(keep: str) -> None:
    """Raise `BadRequest` unless ``keep`` is one of :data:`KEEP`."""
    if keep not in KEEP:
        raise BadRequest(f"--keep is one of {', '.join(KEEP)}, not '{keep}'")


def run_folder(results: Path, run_id: str) -> Path:
    """The folder of a run's files."""
    return results / "runs" / run_id


def older_folder(folder: Path, code: str) -> Path:
    """Where the weights of a run's older result are, by the code's hash."""
    return folder / OLDER / code


def put_aside(folder: Path, code: str) -> None:
    """Move the weights of a finished run to where those of its older result by ``code`` are.

    Raises:
        OSError: a file cannot be moved.
    """
    _move([folder / STUDENT, folder / EPOCHS], older_folder(folder, code))


def bring_back(folder: Path, code: str) -> None:
    """Undo :func:`put_aside`; does nothing if there is nothing of that code.

    Raises:
        OSError: a file cannot be moved.
    """
    older = older_folder(folder, code)
    if older.is_dir():
        _move([path for path in (older / STUDENT, older / EPOCHS) if not (folder / path.name).exists()], folder)
        drop_older(folder, code)


def drop_older(folder: Path, code: str) -> None:
    """Remove the weights of a run's older result.

    Raises:
        OSError: a file cannot be removed.
    """
    older = older_folder(folder, code)
    if older.is_dir():
        shutil.rmtree(older)
        if not any(older.parent.iterdir()):
            older.parent.rmdir()


def _move(paths: Iterable[Path], target: Path) -> None:
    for path in paths:
        if path.exists():
            target.mkdir(parents=True, exist_ok=True)
            path.replace(target / path.name)


def kept_in(folder: Path) -> str:
    """Which weights of a done run are in its folder: one of :data:`KEEP`."""
    if (folder / EPOCHS).is_dir():
        return "all"
    return "last" if (folder / STUDENT).exists() else "none"


def leftovers(folder: Path) -> list[Path]:
    """Half-written files that a process left in a run's folder when it was killed or lost its claim."""
    if not folder.is_dir():
        return []
    copied = (folder / EPOCHS).glob(".*.pt.*")
    return sorted([*(path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name)), *copied])


def set_aside(folder: Path) -> list[Path]:
    """Damaged files that were set aside in a run's folder (``*.corrupt*``)."""
    return sorted(folder.glob("*.corrupt*"))


def clear(folder: Path, *, done: bool) -> None:
    """Remove half-written files and the traceback of an earlier attempt; for a done run its checkpoints too.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in [*leftovers(folder), folder / ERROR, *([folder / CHECKPOINT, folder / PREVIOUS] if done else [])]:
        path.unlink(missing_ok=True)
