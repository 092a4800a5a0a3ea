"""Checkpoints on disk: written whole or not at all, read as weights only."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from kdtable.atomic import written_whole


class BadCheckpoint(Exception):
    """A checkpoint that cannot be read."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``: a temporary file, fsync, rename, fsync of the folder."""
    with written_whole(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU.

    Raises:
        BadCheckpoint: the file is truncated, damaged, or holds anything but tensors and plain values.
    """
    try:
        # torch does not compare the checksums of the archive's members, so a flipped bit would be read as a weight.
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise BadCheckpoint(f"{path} is damaged (in {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except BadCheckpoint:
        raise
    except Exception as error:  # a damaged file makes the readers fail in a dozen ways
        raise BadCheckpoint(f"{path} cannot be read ({type(error).__name__})") from error
    if not isinstance(state, dict) or "history" not in state:
        raise BadCheckpoint(f"{path} is not a checkpoint of a run")
    return state
