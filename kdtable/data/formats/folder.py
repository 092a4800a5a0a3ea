"""Read a folder of square images of one size into memory; see `kdtable.data.formats.image_folders`."""

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdtable.data.contents import REQUIRED, Arrays, Contents, channel_statistics, check_size, check_std
from kdtable.data.formats.image_folders import listed
from kdtable.data.listing import Part, read_bytes
from kdtable.data.pixels import opened, pixels
from kdtable.errors import BadRequest

# The last set, by a key that changes with its files, so that `resolve` and `load` decode them once.
_last: dict[object, Contents] = {}


def read(root: Path) -> Contents:
    """Read and check the folder ``root``; `BadRequest` names the class or image that is wrong."""
    listing = listed("folder", root)
    names = [*listing.train.names, *listing.test.names]
    key = root, listing.sha256, listing.ignored, tuple((root / os.fsdecode(name)).stat().st_mtime_ns for name in names)
    if (kept := _last.get(key)) is not None:
        return kept
    size, digest = _size(root, listing.train.names[0], len(names)), hashlib.sha256()
    train, test = (_decode(root, part, size, digest) for part in (listing.train, listing.test))
    mean, std = channel_statistics(train)
    check_std(root, std)
    arrays: Arrays = dict(zip(REQUIRED, (train, listing.train.labels, test, listing.test.labels), strict=True))
    content = Contents(digest.hexdigest(), listing.num_classes, mean, std, arrays, listing.notes)
    _last.clear()
    _last[key] = content
    return content


def _size(root: Path, first: bytes, count: int) -> int:
    """Width and height of the first image; `BadRequest` if ``count`` of that size do not fit into memory."""
    path, content = read_bytes(root, first)
    with opened(path, content) as image:
        if image.width != image.height:
            raise BadRequest(f"{path}: {image.width} x {image.height} pixels; expected a square image")
        check_size(root, count * 3 * image.width**2)
        return image.width


def _decode(root: Path, part: Part, size: int, digest: "hashlib._Hash") -> NDArray[np.uint8]:
    """Decode images to (N, 3, S, S); update ``digest`` with each relative path and content."""
    images = np.empty((len(part), 3, size, size), dtype=np.uint8)
    for position, name in enumerate(part.names.tolist()):
        path, content = read_bytes(root, name)
        digest.update(name + b"\0" + hashlib.sha256(content).digest())
        images[position] = pixels(path, content, size, ", the size of the first training image", as_shown=True)
    return images
