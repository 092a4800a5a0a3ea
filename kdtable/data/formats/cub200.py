"""Caltech-UCSD Birds 200: list the images of the folder ``CUB_200_2011`` by its index files.

``images.txt`` numbers the images, ``classes.txt`` the classes. ``image_class_labels.txt`` gives each image's class,
``train_test_split.txt`` its part (1 is training).
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Final

from kdtable.data.listing import Entry, Listing, Part, image_bytes
from kdtable.errors import BadRequest

IMAGES: Final = "images.txt"
LABELS: Final = "image_class_labels.txt"
SPLIT: Final = "train_test_split.txt"
CLASSES: Final = "classes.txt"
INDEX: Final = (IMAGES, LABELS, SPLIT, CLASSES)

_LINE: Final = re.compile(r"\s*([0-9]{1,9}) (.*\S)\s*")

#: Limit of an index file: twenty times the size of the largest published one.
_MAX_BYTES: Final = 2**24


def listed(root: Path) -> Listing:
    """List the images of the index files, in the order of their numbers; class 1 has the label 0.

    Raises:
        BadRequest: a file is missing, or the index files contradict each other.
        OSError: a file cannot be read.
    """
    if not root.is_dir():
        raise BadRequest(f"{root}: no such folder; expected the published CUB_200_2011")
    images, labels, split, classes = (_column(root / name) for name in INDEX)
    if list(classes) != list(range(1, len(classes) + 1)):
        raise BadRequest(f"{root / CLASSES}: classes are not numbered from 1 to {len(classes)}, one after the other")
    if odd := sorted((images.keys() ^ labels.keys()) | (images.keys() ^ split.keys())):
        raise BadRequest(f"{root}: image {odd[0]} is not in all of {IMAGES}, {LABELS} and {SPLIT}")
    parts: dict[str, list[Entry]] = {"1": [], "0": []}
    label_of, inside = {str(number): number - 1 for number in classes}, root.resolve()
    for number, image in images.items():
        part, label = split[number], labels[number]
        if part not in parts or label not in label_of:
            raise BadRequest(
                f"{root}: image {number} is of class {label[:20]} and part {part[:20]}; expected a class of {CLASSES}, "
                "and 1 (training) or 0 (test)"
            )
        parts[part].append((*_image(root, image, inside), label_of[label]))
    if absent := sorted(set(label_of.values()) - {label for _, _, label in parts["1"]}):
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
    """Read an index file: texts by number, sorted."""
    if not path.is_file():
        raise BadRequest(f"{path}: is not there; expected the published CUB_200_2011")
    if path.stat().st_size > _MAX_BYTES:
        raise BadRequest(f"{path}: is too large (more than {_MAX_BYTES} bytes)")
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    if None in matches or not matches:
        raise BadRequest(f"{path}: line {(matches or [None]).index(None) + 1} is not a number and a text")
    found = {int(match[1]): match[2] for match in matches if match}
    if len(found) < len(lines):
        raise BadRequest(f"{path}: has a number a second time")
    return dict(sorted(found.items()))
