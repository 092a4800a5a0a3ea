"""Names, sizes and labels of images on disk, and their hash. Does not import torch.

ImageNet has 1.3 million images, so names are one array, which is fast to send to worker processes.
"""

import hashlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtable.data.contents import MAX_FILE_BYTES
from kdtable.errors import BadRequest, several

#: File names relative to the set's folder, in the file system's encoding; (N,).
Names = NDArray[np.bytes_]

#: A name, size in bytes, label.
Entry = tuple[bytes, int, int]


@dataclass(frozen=True, eq=False)
class Part:
    """The training or the test images: their names (N,), sizes (N,) int64 in bytes, and labels (N,) int64."""

    names: Names
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Part":
        """A part with these entries, in this order."""
        names, sizes, labels = list(zip(*entries, strict=True)) or ((), (), ())
        return cls(np.array(names, np.bytes_), np.array(sizes, np.int64), np.array(labels, np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def without(self, names: Collection[str]) -> "Part":
        """The part without the images with these names."""
        return self.at(~np.isin(self.names, [os.fsencode(name) for name in names]))

    def at(self, chosen: NDArray[Any]) -> "Part":
        """The images at some positions (n,), or where a mask (N,) is true."""
        return Part(self.names[chosen], self.sizes[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class Listing:
    """The training and test images of a set, the number of classes, and the ignored files.

    Attributes:
        ignored: names of files without an image's suffix.
    """

    num_classes: int
    train: Part
    test: Part
    ignored: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for the user: numbers of images and classes, and ignored files."""
        out = f"; left out for endings that are none of an image: {several(self.ignored)}" if self.ignored else ""
        return (f"{len(self.train)} training and {len(self.test)} test images of {self.num_classes} classes{out}",)

    @cached_property
    def sha256(self) -> str:
        """Hash of names, sizes and labels in their order; independent of the folder's path."""
        digest = hashlib.sha256(b"%d" % self.num_classes)
        for part in (self.train, self.test):
            digest.update(b"\0%d\0" % len(part) + b"".join(part.names.tolist()))
            for numbers in (np.cumsum(np.strings.str_len(part.names)), part.sizes, part.labels):
                digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()


def image_bytes(path: Path, inside: Path) -> int:
    """Size of an image in bytes.

    Raises:
        BadRequest: it is not a file, is too large, or is a link that leads outside the folder ``inside``.
    """
    if not path.is_file():
        raise BadRequest(f"{path}: is not a file that can be read")
    check_inside(path, inside)
    return check_bytes(path, path.stat().st_size)


def check_bytes(where: object, size: int) -> int:
    """Return ``size``; `BadRequest` if it is too large for an image."""
    if size > MAX_FILE_BYTES:
        raise BadRequest(f"{where}: has {size} bytes, too many for an image (at most {MAX_FILE_BYTES})")
    return size


def check_inside(path: Path, inside: Path) -> Path:
    """Resolve links in ``path``; `BadRequest` if the result is outside the folder ``inside``."""
    if not (real := path.resolve()).is_relative_to(inside):
        raise BadRequest(f"{path}: is a link that leads outside {inside}; put the images themselves there")
    return real


def read_bytes(root: Path, name: bytes) -> tuple[Path, bytes]:
    """Read an image; return its path and content.

    Raises:
        BadRequest: it cannot be read.
    """
    path = root / os.fsdecode(name)
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read ({error.strerror})") from error
