"""The files of a run: ``runs/ID/`` in the results folder."""

import re
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
