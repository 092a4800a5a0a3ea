"""Names, sizes and labels of images that lie on a disk, and their hash. Free of torch.

ImageNet has 1.3 million of them: names are kept as one text, so that processes that decode get it at once and share
the memory that it lies in.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdtable.data.contents import MAX_FILE_BYTES
from kdtable.errors import BadRequest

#: Name relative to the set's folder, as the file system has it; size in bytes; label.
Entry = tuple[bytes, int, int]


@dataclass(frozen=True, eq=False)
class Names:
    """Names of files, one after the other in ``text``; ``ends`` (N,) int64 are the places where they end."""

    text: bytes
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, position: int) -> bytes:
        return self.text[self.ends[position - 1] if position else 0 : self.ends[position]]


@dataclass(frozen=True, eq=False)
class Part:
    """The training or the test images: their names, sizes (N,) int64 in bytes, and labels (N,) int64."""

    names: Names
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def entries(self) -> Iterable[Entry]:
        """Each image, in order."""
        return zip(self.names, self.sizes.tolist(), self.labels.tolist(), strict=True)


@dataclass(frozen=True, eq=False)
class Listing:
    """What there is of a set: its training and its test images, and how many classes they are of."""

    num_classes: int
    train: Part
    test: Part

    @cached_property
    def sha256(self) -> str:
        """Hash of names, sizes and labels, in their order; where the folder lies does not enter it."""
        digest = hashlib.sha256(b"%d" % self.num_classes)
        for part in (self.train, self.test):
            digest.update(b"\0%d\0" % len(part) + part.names.text)
            for numbers in (part.names.ends, part.sizes, part.labels):
                digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()


def part_of(entries: Iterable[Entry]) -> Part:
    """A part with these images, in this order."""
    names, sizes, labels = bytearray(), [], []
    ends = []
    for name, size, label in entries:
        names += name
        ends.append(len(names))
        sizes.append(size)
        labels.append(label)
    columns = [np.array(column, np.int64) for column in (ends, sizes, labels)]
    return Part(Names(bytes(names), columns[0]), columns[1], columns[2])


def lacking(part: Part, names: Collection[str]) -> Part:
    """The part without the images of these names."""
    gone = {os.fsencode(name) for name in names}
    return part_of(entry for entry in part.entries() if entry[0] not in gone)


def image_bytes(path: Path, inside: Path) -> int:
    """Size of an image.

    Raises:
        BadRequest: it is no file, is too large, or lies, by way of a link, outside the folder ``inside``.
    """
    if not path.is_file():
        raise BadRequest(f"{path}: is not a file that can be read")
    check_inside(path, inside)
    return check_bytes(path, path.stat().st_size)


def check_bytes(where: object, size: int) -> int:
    """The size of an image, if it is one that is read."""
    if size > MAX_FILE_BYTES:
        raise BadRequest(f"{where}: has {size} bytes, too many for an image (at most {MAX_FILE_BYTES})")
    return size


def check_inside(path: Path, inside: Path) -> None:
    """Raise `BadRequest` if a file or folder lies, by way of a link, outside the folder ``inside``."""
    if not path.resolve().is_relative_to(inside):
        raise BadRequest(f"{path}: is a link that leads outside {inside}; put the images themselves there")
