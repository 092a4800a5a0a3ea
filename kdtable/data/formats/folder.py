"""Sets in a folder of images: ``train/CLASS/*.png`` (or jpg, jpeg), and ``test/CLASS/*`` or ``val/CLASS/*``.

A class's index is its place among the sorted class names. Hidden folders and files of other types are
ignored.
"""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdtable.data.contents import (
    MAX_FILE_BYTES,
    Contents,
    channel_statistics,
    check_size,
    check_std,
)
from kdtable.data.pixels import opened, pixels
from kdtable.errors import BadRequest

SUFFIXES = (".png", ".jpg", ".jpeg")

# relative path, time of change and size of every image of a part, sorted
Listing = tuple[tuple[str, int, int], ...]


def read(root: Path) -> Contents:
    """The checked contents of the folder ``root``; `BadRequest` names the class or image that is wrong."""
    if not root.is_dir():
        raise BadRequest(f"{root}: no such folder of images")
    test = "test" if (root / "test").is_dir() or not (root / "val").is_dir() else "val"
    train_classes, test_classes = _classes(root, "train"), _classes(root, test)
    if odd := sorted(set(train_classes) ^ set(test_classes)):
        raise BadRequest(f"{root}: train and {test} differ in their classes: only one of them has {', '.join(odd)}")
    train_listing = _listing(root, "train", train_classes)
    return _read(root, tuple(train_classes), train_listing, _listing(root, test, test_classes))


@lru_cache(maxsize=1)
def _read(root: Path, classes: tuple[str, ...], train: Listing, test: Listing) -> Contents:
    """Keyed by what changes with the files, so that resolving and loading decode them once."""
    size = _size(root / train[0][0], root, len(train) + len(test))
    digest = hashlib.sha256()
    train_images = _decode(root, train, size, digest)
    test_images = _decode(root, test, size, digest)
    mean, std = channel_statistics(train_images)
    check_std(root, std)
    return Contents(
        sha256=digest.hexdigest(),
        num_classes=len(classes),
        mean=mean,
        std=std,
        train_images=train_images,
        train_labels=_labels(classes, train),
        test_images=test_images,
        test_labels=_labels(classes, test),
    )


def _classes(root: Path, part: str) -> list[str]:
    folder = root / part
    if not folder.is_dir():
        raise BadRequest(f"{root}: has no folder {part}; expected train/CLASS/*.png and test/CLASS/*.png")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise BadRequest(f"{folder}: has no class folders; expected {part}/CLASS/*.png")
    return names


def _listing(root: Path, part: str, classes: list[str]) -> Listing:
    inside = root.resolve()
    listing = []
    for name in classes:
        folder = root / part / name
        files = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)
        if not files:
            raise BadRequest(f"{folder}: has no images; expected files that end in {', '.join(SUFFIXES)}")
        for file in files:
            if not file.is_file():
                raise BadRequest(f"{file}: is not a file that can be read")
            if not file.resolve().is_relative_to(inside):
                raise BadRequest(f"{file}: is a link that leads outside {root}; put the image itself there")
            state = file.stat()
            if state.st_size > MAX_FILE_BYTES:
                raise BadRequest(f"{file}: has {state.st_size} bytes, too many for an image (at most {MAX_FILE_BYTES})")
            listing.append((file.relative_to(root).as_posix(), state.st_mtime_ns, state.st_size))
    return tuple(listing)


def _size(first: Path, root: Path, count: int) -> int:
    """Width and height of the first image, if so many of that size can be held in memory."""
    with opened(first, _bytes(first)) as image:
        if image.width != image.height:
            raise BadRequest(f"{first}: {image.width} x {image.height} pixels; expected a square image")
        check_size(root, count * 3 * image.width**2)
        return image.width


def _decode(root: Path, listing: Listing, size: int, digest: "hashlib._Hash") -> NDArray[np.uint8]:
    """Images (N, 3, S, S); what was read of each enters ``digest`` with its relative path."""
    images = np.empty((len(listing), 3, size, size), dtype=np.uint8)
    for position, (relative, _, _) in enumerate(listing):
        content = _bytes(root / relative)
        digest.update(os.fsencode(relative) + b"\0" + hashlib.sha256(content).digest())
        images[position] = pixels(root / relative, content, size, ", the size of the first training image")
    return images


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadRequest(f"{file}: cannot be read ({error.strerror})") from error


def _labels(classes: tuple[str, ...], listing: Listing) -> NDArray[np.int64]:
    place = {name: index for index, name in enumerate(classes)}
    return np.array([place[relative.split("/")[1]] for relative, _, _ in listing], dtype=np.int64)
