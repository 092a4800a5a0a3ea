"""Caltech-UCSD Birds 200: what the index files of the folder ``CUB_200_2011`` say of its images."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from kdtable.data.listing import Entry, Listing, image_bytes, part_of
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
        if split[number] not in parts:
            raise BadRequest(
                f"{root / SPLIT}: image {number} has {split[number][:20]}; expected 1 (training) or 0 (test)"
            )
        label = _label(root, number, labels[number], classes)
        parts[split[number]].append(_entry(root, inside, image, label))
    if absent := sorted(set(range(len(classes))) - {label for _, _, label in parts["1"]}):
        raise BadRequest(f"{root}: class {classes[absent[0] + 1][:80]} has no training images")
    if not parts["0"]:
        raise BadRequest(f"{root / SPLIT}: names no test images")
    return Listing(len(classes), part_of(parts["1"]), part_of(parts["0"]))


def _column(path: Path) -> dict[int, str]:
    """Lines of a number and a text, by the number, sorted."""
    if not path.is_file():
        raise BadRequest(f"{path}: is not there; expected the published CUB_200_2011")
    if path.stat().st_size > _MAX_BYTES:
        raise BadRequest(f"{path}: is too large (more than {_MAX_BYTES} bytes)")
    found: dict[int, str] = {}
    for place, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1):
        number, _, text = line.strip().partition(" ")
        if not (number.isascii() and number.isdecimal() and len(number) < 10 and text):
            raise BadRequest(f"{path}: line {place} is not a number and a text")
        if int(number) in found:
            raise BadRequest(f"{path}: line {place} has the number {number} a second time")
        found[int(number)] = text
    if not found:
        raise BadRequest(f"{path}: is empty")
    return dict(sorted(found.items()))


def _label(root: Path, number: int, text: str, classes: Mapping[int, str]) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) in classes):
        raise BadRequest(f"{root / LABELS}: image {number} is of class {text[:20]}, which {CLASSES} lacks")
    return int(text) - 1


def _entry(root: Path, inside: Path, image: str, label: int) -> Entry:
    name = PurePosixPath("images", image)
    if PurePosixPath(image).is_absolute() or ".." in name.parts or "\0" in image:
        raise BadRequest(f"{root / IMAGES}: {image[:80]} leads outside the folder")
    path = root / name
    if not path.exists():
        raise BadRequest(f"{path}: is not there, but {IMAGES} names it")
    return os.fsencode(str(name)), image_bytes(path, inside), label
