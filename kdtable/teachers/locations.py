"""Paths of teachers on disk, and checksums of files. Does not import torch."""

import hashlib
from pathlib import Path
from typing import Final

from kdtable.errors import BadRequest

#: Suffixes of weight files; first that of teachers trained here.
SUFFIXES: Final = (".safetensors", ".pth", ".th", ".pt", ".npz")


class BadTeacher(BadRequest):
    """A weight file that is damaged, or not the expected one."""


def home(folder: Path, dataset_key: str, network: str, suffix: str = SUFFIXES[0]) -> Path:
    """Path of the teacher ``network`` (canonical name) for a data set."""
    return folder / dataset_key / f"{network}{suffix}"


def lock_of(folder: Path) -> Path:
    """Lock file of processes that put teachers into the folder."""
    return folder / ".fetch.lock"


def teacher_path(folder: Path, dataset_key: str, network: str) -> Path | None:
    """The teacher's existing file, with any of the known suffixes; ``None`` if there is none."""
    paths = (home(folder, dataset_key, network, suffix) for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def sha256_of(path: Path) -> str:
    """The file's SHA-256, 64 lower-case hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_of(path: Path) -> str:
    """The file's MD5, 32 lower-case hex digits: it tells a damaged file, and no attacker's.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
