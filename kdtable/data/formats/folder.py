"""Read a folder of images into memory, all of one size or brought to one; see `kdtable.data.formats.image_folders`."""

import hashlib
import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdtable.data.contents import REQUIRED, Arrays, Contents, channel_statistics, check_size, check_std
from kdtable.data.crops import fitted
from kdtable.data.formats.image_folders import listed
from kdtable.data.listing import Part, read_bytes
from kdtable.data.pixels import decode_image, opened, pixels
from kdtable.errors import BadRequest, counted

#: How images of several sizes can be read; the end of a sentence.
RESIZE: Final = " (--image-size N scales and crops all to N x N)"

# The last set, by a key that changes with its files, so that `resolve` and `load` decode them once.
_last: dict[object, Contents] = {}


def read(root: Path, size: int | None = None) -> Contents:
    """Read and check the folder ``root``; `BadRequest` names the class or image that is wrong.

    Args:
        root: the folder.
        size: height and width that images are scaled and cropped to; by default all must have the first one's size.
    """
    listing = listed("folder", root)
    names = [*listing.train.names, *listing.test.names]
    times = tuple((root / os.fsdecode(name)).stat().st_mtime_ns for name in names)
    key = root, size, listing.sha256, listing.ignored, times
    if (kept := _last.get(key)) is not None:
        return kept
    side = _size(root, listing.train.names[0]) if size is None else size
    check_size(root, len(names) * 3 * side**2)
    decoder = _Decoder(root, side, resizes=size is not None)
    train, test = (decoder.part(part) for part in (listing.train, listing.test))
    mean, std = channel_statistics(train)
    check_std(root, std)
    arrays: Arrays = dict(zip(REQUIRED, (train, listing.train.labels, test, listing.test.labels), strict=True))
    notes = (*listing.notes, *decoder.notes)
    content = Contents(
        decoder.digest.hexdigest(), listing.num_classes, mean, std, arrays, notes, decoder.resized_count > 0
    )
    _last.clear()
    _last[key] = content
    return content


def _size(root: Path, first: bytes) -> int:
    """Width and height of the first image."""
    path, content = read_bytes(root, first)
    with opened(path, content) as image:
        if image.width != image.height:
            raise BadRequest(f"{path}: {image.width} x {image.height} pixels; expected a square image{RESIZE}")
        return image.width


class _Decoder:
    """Decodes images of a folder to (N, 3, S, S), and hashes each relative path and content on the way."""

    def __init__(self, root: Path, size: int, *, resizes: bool) -> None:
        self.digest = hashlib.sha256()
        self.resized_count = 0
        self._root, self._size, self._resizes = root, size, resizes

    def part(self, part: Part) -> NDArray[np.uint8]:
        images = np.empty((len(part), 3, self._size, self._size), dtype=np.uint8)
        for position, name in enumerate(part.names.tolist()):
            path, content = read_bytes(self._root, name)
            self.digest.update(name + b"\0" + hashlib.sha256(content).digest())
            images[position] = self._pixels(path, content)
        return images

    def _pixels(self, path: Path, content: bytes) -> NDArray[np.uint8]:
        if not self._resizes:
            why = f", the size of the first training image{RESIZE}"
            return pixels(path, content, self._size, why, as_shown=True)
        image = decode_image(path, content, as_shown=True)
        if image.size != (self._size, self._size):
            self.resized_count += 1
            image = fitted(image, self._size)
        return np.asarray(image).transpose(2, 0, 1)

    @property
    def notes(self) -> tuple[str, ...]:
        size = f"{self._size} x {self._size}"
        text = f"{counted(self.resized_count, 'image')} of other sizes scaled and cropped to {size} pixels"
        return (text,) if self.resized_count else ()
