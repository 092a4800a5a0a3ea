"""Where teachers lie on disk, and the checksum of a file. Needs no torch."""

import hashlib
from pathlib import Path
from typing import Final

from kdtable.errors import BadRequest

#: Of files of weights; that of those that are trained here comes first.
SUFFIXES: Final = (".safetensors", ".pth", ".th", ".pt", ".npz")


class BadTeacher(BadRequest):
    """A file of weights that is damaged, or is not what it should be."""


def home(folder: Path, dataset_key: str, network: str, suffix: str = SUFFIXES[0]) -> Path:
    """Where the teacher ``network`` (canonical name) for a data set belongs."""
    return folder / dataset_key / f"{network}{suffix}"


def lock_of(folder: Path) -> Path:
    """What a process locks that brings teachers into their folder."""
    return folder / ".fetch.lock"


def teacher_path(folder: Path, dataset_key: str, network: str) -> Path | None:
    """The teacher's file, if it is there under one of the known suffixes."""
    places = (home(folder, dataset_key, network, suffix) for suffix in SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def sha256_of(path: Path) -> str:
    """The file's SHA-256, 64 lower-case hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
