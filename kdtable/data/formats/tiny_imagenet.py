"""Tiny-ImageNet: 200 classes of photographs, 64 x 64, from its official archive.

``tiny-imagenet-200.zip`` is read where it lies, or the folder ``tiny-imagenet-200`` that was unpacked from it:
``train/WNID/images/*.JPEG`` are the training images, ``val/images/*.JPEG`` the test images, with their classes in
``val/val_annotations.txt``. A class's index is the place of its wnid among the sorted names of the training folders;
``wnids.txt`` has another order and is not read. Images stand in the order of their names.

Decoding takes its time, so the arrays are kept beside the archive, in an npz that is made again when the archive
changes.
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
from kdtable.data.spec import DECODING_VERSION, DataSpec, OnProgress
from kdtable.errors import BadRequest
from kdtable.files.atomic import locked, written_whole
from kdtable.files.pins import pins_file, read_pins
from kdtable.files.trees import FolderTree, Tree, ZipTree

NAME: Final = "tiny-imagenet"
ARCHIVE: Final = "tiny-imagenet-200.zip"
FOLDER: Final = "tiny-imagenet-200"

#: What is kept of it, and the lock of the process that decodes.
KEPT: Final = "tiny-imagenet-200.decoded.npz"
LOCK: Final = ".tiny-imagenet-200.lock"

#: Raised whenever what is kept would be read wrongly by an older reader.
FORMAT: Final = 1

ANNOTATIONS: Final = "val/val_annotations.txt"

# Names that begin with a dot are what macOS leaves in archives.
_TRAIN = re.compile(r"train/([^/]+)/images/[^/.][^/]*\.JPEG")
_TEST = re.compile(r"val/images/([^/.][^/]*\.JPEG)")

#: Images between two calls of the listener.
_STEP: Final = 500


def read(spec: DataSpec, root: Path, on_progress: OnProgress | None = None) -> Arrays:
    """The images and labels in the folder ``root``: the four arrays that an npz set has too.

    They are decoded once, and kept in ``root`` unless it cannot be written.

    Args:
        spec: the numbers of classes and images that there must be, and their size.
        root: folder of data sets.
        on_progress: told how many of how many images have been decoded.

    Raises:
        BadRequest: nothing is there, it is not as it should be, or its checksum is not the pinned one.
    """
    try:
        return read_or_decode(spec, root, on_progress)
    except OSError as error:
        raise BadRequest(f"Tiny-ImageNet in {root} cannot be read or kept: {error}") from error


def read_or_decode(spec: DataSpec, root: Path, on_progress: OnProgress | None = None) -> Arrays:
    """As `read`; what the disk does not allow is an ``OSError``."""
    tree = _find(root)
    if (kept := _kept(root, tree)) is not None:
        return kept
    if not os.access(root, os.W_OK):
        return _decode_here(spec, tree, on_progress)
    with locked(root / LOCK):
        arrays = _kept(root, tree)  # by another process in the meantime
        if arrays is None:
            arrays = _decode_here(spec, tree, on_progress)
            _keep(root, tree, arrays)
    return arrays


def _decode_here(spec: DataSpec, tree: Tree, on_progress: OnProgress | None) -> Arrays:
    try:
        return decode(spec, tree, on_progress)
    except BadRequest as error:
        raise BadRequest(f"{error}; 'kdtable fetch-data {NAME}' gets the official archive") from error


def keep(root: Path, tree: Tree, arrays: Arrays) -> None:
    """Keep what was decoded, in the folder ``root``, for `read`.

    Raises:
        OSError: there is no room, or no permission.
    """
    with locked(root / LOCK):
        _keep(root, tree, arrays)


def open_archive(path: Path) -> ZipTree:
    """The files of the archive at ``path``, of which nothing has been checked yet."""
    return ZipTree(path, FOLDER)


def _find(root: Path) -> Tree:
    if (root / ARCHIVE).is_file():
        tree = open_archive(root / ARCHIVE)
        _check_pin(root, tree.key)
        return tree
    if (root / FOLDER).is_dir():
        return FolderTree(root / FOLDER, ("train", "val"))
    raise BadRequest(
        f"Tiny-ImageNet is not in {root}: get it with 'kdtable fetch-data {NAME}', put {ARCHIVE} there, or name the "
        "folder that has it by KDTABLE_DATA or --data-root"
    )


def _check_pin(root: Path, sha256: str) -> None:
    pin = read_pins(root).get(NAME)
    if pin is not None and pin.sha256 != sha256:
        raise BadRequest(
            f"{root / ARCHIVE}: has changed since it was fetched (its checksum is {sha256}, not {pin.sha256}): get it "
            f"again with 'kdtable fetch-data {NAME}', or remove the line of {NAME} in {pins_file(root)} to accept it"
        )


# --- what is kept ------------------------------------------------------------------------------------------------


def _key(tree: Tree) -> NDArray[np.uint8]:
    """Tells what was decoded, and how; (32,)."""
    text = f"{FORMAT} {DECODING_VERSION} {type(tree).__name__} {tree.key}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def _kept(root: Path, tree: Tree) -> Arrays | None:
    """What was decoded from the same files before; ``None`` for nothing that can be used."""
    path = root / KEPT
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            same = np.array_equal(read_arrays(path, file, ["key"])["key"], _key(tree))
            return read_arrays(path, file, REQUIRED) if same else None
    except BadRequest:
        return None  # damaged: it is only a copy, which will be made again


def _keep(root: Path, tree: Tree, arrays: Arrays) -> None:
    with written_whole(root / KEPT, alone=True) as file:  # under the lock
        np.savez(file, allow_pickle=False, **{"key": _key(tree), **arrays})


# --- decoding ----------------------------------------------------------------------------------------------------


def decode(spec: DataSpec, tree: Tree, on_progress: OnProgress | None = None) -> Arrays:
    """The images and labels of the archive's files; arguments as in `read`.

    Raises:
        BadRequest: files are missing or damaged, or their numbers are not those of ``spec``.
    """
    wnids = {name: match[1] for name in tree.names if (match := _TRAIN.fullmatch(name))}
    classes = _classes(spec, tree, Counter(wnids.values()))
    labels = {name: classes[wnid] for name, wnid in wnids.items()} | _annotated(spec, tree, classes)
    images = np.empty((len(labels), 3, spec.image_size, spec.image_size), np.uint8)
    told = on_progress or (lambda done, total: None)
    for position, name in enumerate(labels):
        if position % _STEP == 0:
            told(position, len(labels))
        images[position] = pixels(tree.where(name), tree.read(name), spec.image_size)
    told(len(labels), len(labels))
    numbers, train = np.array(list(labels.values()), np.int64), len(wnids)
    return dict(zip(REQUIRED, (images[:train], numbers[:train], images[train:], numbers[train:]), strict=True))


def _classes(spec: DataSpec, tree: Tree, counts: Mapping[str, int]) -> dict[str, int]:
    """Class indices by wnid, if every class has its share of the training images."""
    if len(counts) != spec.num_classes:
        raise BadRequest(f"{tree.where('train')}: has images of {len(counts)} classes; expected {spec.num_classes}")
    share = spec.train_count // spec.num_classes
    for wnid, count in sorted(counts.items()):
        if count != share:
            raise BadRequest(f"{tree.where(f'train/{wnid}/images')}: has {count} images; expected {share}")
    return {wnid: index for index, wnid in enumerate(sorted(counts))}


def _annotated(spec: DataSpec, tree: Tree, classes: Mapping[str, int]) -> dict[str, int]:
    """Labels of the test images by their names, in the order of these.

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
