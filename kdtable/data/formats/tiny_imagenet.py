"""Read Tiny-ImageNet, 200 classes of 64 x 64 images, from its official archive.

Reads ``tiny-imagenet-200.zip``: ``train/WNID/images/*.JPEG`` are the training images, ``val/images/*.JPEG`` the test
images, with their classes in ``val/val_annotations.txt``. A class's index is the position of its wnid among the sorted
names of the training folders; ``wnids.txt`` has another order and is not read. Images are sorted by name.

Decoding is slow, so the arrays are kept beside the archive in an npz, which is rewritten when the archive changes.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdtable.data.contents import REQUIRED, Arrays
from kdtable.data.formats.npz import read_arrays
from kdtable.data.pixels import pixels
from kdtable.data.spec import DECODING_VERSIONS, DataSpec, OnProgress
from kdtable.errors import BadRequest
from kdtable.files.atomic import locked, written_whole
from kdtable.files.pins import pins_file, read_pins
from kdtable.files.trees import ZipTree

NAME: Final = "tiny-imagenet"
ARCHIVE: Final = "tiny-imagenet-200.zip"
FOLDER: Final = "tiny-imagenet-200"

#: The file of decoded arrays, and the lock of the process that decodes.
KEPT: Final = "tiny-imagenet-200.decoded.npz"
LOCK: Final = ".tiny-imagenet-200.lock"

#: Version of the kept file; raised when an older reader would misread it.
FORMAT: Final = 1

ANNOTATIONS: Final = "val/val_annotations.txt"

# Names that begin with a dot are files that macOS adds to archives.
_TRAIN = re.compile(r"train/([^/]+)/images/[^/.][^/]*\.JPEG")
_TEST = re.compile(r"val/images/([^/.][^/]*\.JPEG)")

#: Images between two progress calls.
_STEP: Final = 500


def read(spec: DataSpec, root: Path, on_progress: OnProgress | None = None) -> Arrays:
    """Read the set in ``root``; returns the arrays in ``REQUIRED``.

    Images are decoded once, and kept in ``root`` if it is writable.

    Args:
        spec: the expected numbers of classes and images, and their size.
        root: folder of data sets.
        on_progress: called with the numbers of images decoded, and of all.

    Raises:
        BadRequest: the set is missing or malformed, or its checksum is not the pinned one.
    """
    try:
        return read_or_decode(spec, root, on_progress)
    except OSError as error:
        raise BadRequest(f"Tiny-ImageNet in {root} cannot be read or kept: {error}") from error


def read_or_decode(spec: DataSpec, root: Path, on_progress: OnProgress | None = None) -> Arrays:
    """As `read`, but raises ``OSError`` for errors of the disk."""
    tree = _find(root)
    if (kept := _kept(root, tree)) is not None:
        return kept
    if not os.access(root, os.W_OK):
        return _decode_here(spec, tree, on_progress)
    with locked(root / LOCK):
        arrays = _kept(root, tree)  # another process may have decoded it
        if arrays is None:
            arrays = _decode_here(spec, tree, on_progress)
            _keep(root, tree, arrays)
    return arrays


def _decode_here(spec: DataSpec, tree: ZipTree, on_progress: OnProgress | None) -> Arrays:
    try:
        return decode(spec, tree, on_progress)
    except BadRequest as error:
        raise BadRequest(f"{error}; 'kdtable fetch-data {NAME}' gets the official archive") from error


def keep(root: Path, tree: ZipTree, arrays: Arrays) -> None:
    """Keep decoded arrays in the folder ``root`` for `read`.

    Raises:
        OSError: the file cannot be written.
    """
    with locked(root / LOCK):
        _keep(root, tree, arrays)


def open_archive(path: Path) -> ZipTree:
    """Open the archive at ``path``, without checking it."""
    return ZipTree(path, FOLDER)


def _find(root: Path) -> ZipTree:
    if not (root / ARCHIVE).is_file():
        raise BadRequest(
            f"Tiny-ImageNet is not in {root}: get it with 'kdtable fetch-data {NAME}', put {ARCHIVE} there, or name "
            "the folder that has it by KDTABLE_DATA or --data-root"
        )
    tree, pin = open_archive(root / ARCHIVE), read_pins(root).get(NAME)
    if pin is not None and pin.sha256 != tree.key:
        raise BadRequest(
            f"{root / ARCHIVE}: has changed since it was fetched (its checksum is {tree.key}, not {pin.sha256}): get "
            f"it again with 'kdtable fetch-data {NAME}', or remove the line of {NAME} in {pins_file(root)} to accept it"
        )
    return tree


# --- kept arrays -------------------------------------------------------------------------------------------------


def _key(tree: ZipTree) -> NDArray[np.uint8]:
    """Hash of the source files and the decoder's version; (32,)."""
    text = f"{FORMAT} {DECODING_VERSIONS['tiny-imagenet']} {type(tree).__name__} {tree.key}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def _kept(root: Path, tree: ZipTree) -> Arrays | None:
    """The kept arrays of the same files; ``None`` if there are no usable ones."""
    path = root / KEPT
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            same = np.array_equal(read_arrays(path, file, ["key"])["key"], _key(tree))
            return read_arrays(path, file, REQUIRED) if same else None
    except BadRequest:
        return None  # damaged: it will be decoded again


def _keep(root: Path, tree: ZipTree, arrays: Arrays) -> None:
    with written_whole(root / KEPT, alone=True) as file:  # the caller holds the lock
        np.savez(file, allow_pickle=False, **{"key": _key(tree), **arrays})


# --- decoding ----------------------------------------------------------------------------------------------------


def decode(spec: DataSpec, tree: ZipTree, on_progress: OnProgress | None = None) -> Arrays:
    """Decode the images and labels of ``tree``; other arguments as in `read`.

    Raises:
        BadRequest: files are missing or damaged, or their numbers are not those of ``spec``.
    """
    wnids = {name: match[1] for name in tree.names if (match := _TRAIN.fullmatch(name))}
    classes = _classes(spec, tree, Counter(wnids.values()))
    labels = {name: classes[wnid] for name, wnid in wnids.items()} | _annotated(spec, tree, classes)
    images = np.empty((len(labels), 3, spec.image_size, spec.image_size), np.uint8)
    progress = on_progress or (lambda done, total: None)
    for position, name in enumerate(labels):
        if position % _STEP == 0:
            progress(position, len(labels))
        images[position] = pixels(tree.where(name), tree.read(name), spec.image_size)
    progress(len(labels), len(labels))
    numbers, train = np.array(list(labels.values()), np.int64), len(wnids)
    return dict(zip(REQUIRED, (images[:train], numbers[:train], images[train:], numbers[train:]), strict=True))


def _classes(spec: DataSpec, tree: ZipTree, counts: Mapping[str, int]) -> dict[str, int]:
    """Class indices by wnid; `BadRequest` unless all classes have equally many training images."""
    if len(counts) != spec.num_classes:
        raise BadRequest(f"{tree.where('train')}: has images of {len(counts)} classes; expected {spec.num_classes}")
    expected = spec.train_count // spec.num_classes
    for wnid, count in sorted(counts.items()):
        if count != expected:
            raise BadRequest(f"{tree.where(f'train/{wnid}/images')}: has {count} images; expected {expected}")
    return {wnid: index for index, wnid in enumerate(sorted(counts))}


def _annotated(spec: DataSpec, tree: ZipTree, classes: Mapping[str, int]) -> dict[str, int]:
    """Labels of the test images by name, sorted by name.

    A line of the annotations has an image, its wnid and a box of four numbers, separated by tabs.
    """
    where = tree.where(ANNOTATIONS)
    if ANNOTATIONS not in tree.names:
        raise BadRequest(f"{where}: is not there; expected the official layout, {ARCHIVE} as it was published")
    labels: dict[str, int] = {}
    for number, line in enumerate(tree.read(ANNOTATIONS).splitlines(), start=1):
        image, *others = line.decode("utf-8", "replace").split("\t")
        if len(others) != 5 or others[0] not in classes or f"val/images/{image}" in labels:
            raise BadRequest(
                f"{where}: line {number} does not give another image, a class that has training images, and a box"
            )
        labels[f"val/images/{image}"] = classes[others[0]]
    if odd := sorted(labels.keys() ^ set(filter(_TEST.fullmatch, tree.names))):
        raise BadRequest(f"{tree.where(odd[0])}: is in only one of val/images and {ANNOTATIONS}")
    if len(labels) != spec.test_count:
        raise BadRequest(f"{tree.where('val/images')}: has {len(labels)} images; expected {spec.test_count}")
    return dict(sorted(labels.items()))
