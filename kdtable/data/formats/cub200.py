"""Caltech-UCSD Birds 200: what the index files of the folder ``CUB_200_2011`` say of its images.

``images.txt`` numbers the images, ``classes.txt`` the classes, ``image_class_labels.txt`` and ``train_test_split.txt``
give each image its class and its part (1 is training).
"""

import os
from pathlib import Path, PurePosixPath
from typing import Final

from kdtable.data.listing import Entry, Listing, Part, image_bytes
from kdtable.errors import BadRequest

IMAGES: Final = "images.txt"
LABELS: Final = "image_class_labels.txt"
SPLIT: Final = "train_test_split.txt"
CLASSES: Final = "classes.txt"
INDEX: Final = (IMAGES, LABELS, SPLIT, CLASSES)

#: Twenty times that of the largest of the published ones.
_MAX_BYTES: Final = 2**24


def listed(root: Path) -> Listing:
    """The images that the index files name, in the order of their numbers; class 1 has the label 0.

    Raises:
        BadRequest: a file is missing, or two of them contradict each other.
        OSError: a file cannot be read.
    """
    if not root.is_dir():
        raise BadRequest(f"{root}: no such folder; expected the published CUB_200_2011")
    images, labels, split, classes = (_column(root / name) for name in INDEX)
    if list(classes) != list(range(1, len(classes) + 1)):
        raise BadRequest(f"{root / CLASSES}: classes are not numbered from 1 to {len(classes)}, one after the other")
    for name, column in ((LABELS, labels), (SPLIT, split)):
        if odd := sorted(images.keys() ^ column.keys()):
            raise BadRequest(f"{root}: image {odd[0]} is in only one of {IMAGES} and {name}")
    parts: dict[str, list[Entry]] = {"1": [], "0": []}
    inside = root.resolve()
    for number, image in images.items():
        part, label = split[number], _number(labels[number])
        if part not in parts:
            raise BadRequest(f"{root / SPLIT}: image {number} has {part[:20]}; expected 1 (training) or 0 (test)")
        if label not in classes:
            raise BadRequest(
                f"{root / LABELS}: image {number} is of class {labels[number][:20]}, which {CLASSES} lacks"
            )
        parts[part].append((*_image(root, image, inside), label - 1))
    if absent := sorted(set(range(len(classes))) - {label for _, _, label in parts["1"]}):
        raise BadRequest(f"{root}: class {classes[absent[0] + 1][:80]} has no training images")
    if not parts["0"]:
        raise BadRequest(f"{root / SPLIT}: names no test images")
    return Listing(len(classes), Part.of(parts["1"]), Part.of(parts["0"]))


def _image(root: Path, image: str, inside: Path) -> tuple[bytes, int]:
    """An image's name below ``root``, and its size."""
    name = PurePosixPath("images", image)
    if not (root / name).exists():
        raise BadRequest(f"{root / name}: is not there, but {IMAGES} names it")
    return os.fsencode(name), image_bytes(root / name, inside)


def _column(path: Path) -> dict[int, str]:
    """Lines of a number and a text, by the number, sorted."""
    if not path.is_file():
        raise BadRequest(f"{path}: is not there; expected the published CUB_200_2011")
    if path.stat().st_size > _MAX_BYTES:
        raise BadRequest(f"{path}: is too large (more than {_MAX_BYTES} bytes)")
    found: dict[int, str] = {}
    for place, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1):
        first, _, text = line.strip().partition(" ")
        if (number := _number(first)) < 0 or not text:
            raise BadRequest(f"{path}: line {place} is not a number and a text")
        if number in found:
            raise BadRequest(f"{path}: line {place} has the number {number} a second time")
        found[number] = text
    if not found:
        raise BadRequest(f"{path}: is empty")
    return dict(sorted(found.items()))


def _number(text: str) -> int:
    """The number that a text is; -1 for none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
