"""The files of a run, beside the database: ``runs/ID/`` in the results folder."""

import re
from pathlib import Path
from typing import Final

#: Everything that continues a run; gone once it is done.
CHECKPOINT: Final = "checkpoint.pt"
#: The one before, for the day when that is damaged.
PREVIOUS: Final = "checkpoint.previous.pt"
#: The trained student of a done run.
STUDENT: Final = "student.safetensors"
#: The traceback of a failed run.
ERROR: Final = "error.txt"
#: Folder of one checkpoint per epoch, where all are kept.
EPOCHS: Final = "epochs"

#: What is kept of a done run's weights: the student, also a checkpoint of every epoch, or nothing.
KEEP: Final = ("last", "all", "none")

_UNFINISHED: Final = re.compile(
    r"\.(checkpoint\.pt|student\.safetensors|error\.txt)\..*|(checkpoint\.pt|student\.safetensors)\.[0-9a-f]{32}"
)


def run_folder(results: Path, run_id: str) -> Path:
    """Where the files of a run lie."""
    return results / "runs" / run_id


def leftovers(folder: Path) -> list[Path]:
    """What processes that were killed, or had lost their claim, were writing into a run's folder."""
    if not folder.is_dir():
        return []
    copied = (folder / EPOCHS).glob(".*.pt.*")
    return sorted([*(path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name)), *copied])


def set_aside(folder: Path) -> list[Path]:
    """Damaged files that were set aside in a run's folder."""
    return sorted(folder.glob("*.corrupt*"))


def clear(folder: Path, *, done: bool) -> None:
    """Remove what a run's folder has left over, and the traceback of an earlier attempt.

    Of a done run its checkpoints too, which continue nothing any more.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in [*leftovers(folder), folder / ERROR, *([folder / CHECKPOINT, folder / PREVIOUS] if done else [])]:
        path.unlink(missing_ok=True)
