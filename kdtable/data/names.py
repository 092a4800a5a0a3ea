"""Resolve data sets by name and read their contents. Does not import torch."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kdtable.data.spec import (
    BUILT_IN,
    CROP_SIZE,
    CROP_SIZES,
    DETECTION,
    IMAGENET_MEAN,
    IMAGENET_STD,
    STREAMED,
    DataSpec,
    OnProgress,
    at_size,
)
from kdtable.errors import BadRequest, unknown

if TYPE_CHECKING:
    from kdtable.data.contents import Contents


#: Kinds of the user's sets that are read into memory, and how a user names them.
READ: Final = {"npz": "npz:PATH", "folder": "folder:PATH", "hf": "hf:NAME"}

#: Kinds of sets in memory whose images may be scaled and cropped.
RESIZED: Final = ("folder", "hf")


def resolve(
    name: str, image_size: int | None = None, *, skip_unreadable: bool = False, on_progress: OnProgress | None = None
) -> DataSpec:
    """The data set called ``name``: one of ``BUILT_IN``, or KIND:PATH.

    Built-in sets do not touch the disk. A file or folder (``npz``, ``folder``) is read and checked, and stays in memory
    for `load`. For a streamed set (``imagenet``, ``cub200``) only the images' names and sizes are read.

    Example:
        resolve("imagenet:data/imagenet", image_size=160)

    Args:
        name: as the user writes it.
        image_size: size of a streamed set's crops, by default ``CROP_SIZE``; or what the images of a ``folder`` are
            scaled and cropped to, by default none; or that of the digits, by default 32.
        skip_unreadable: leave out unreadable images of a streamed set. To find them, all images are decoded once; the
            result is kept in the set's folder until names, sizes or labels change.
        on_progress: called while images are decoded.

    Raises:
        BadRequest: no such set or file, or its contents do not have the documented layout.
    """
    name = spelled(name)
    kind, colon, location = name.partition(":")
    if kind in STREAMED:
        return _streamed(kind, _path(name, kind, location), image_size or CROP_SIZE, skip_unreadable, on_progress)
    if kind in DETECTION and name not in BUILT_IN:
        return _with_boxes(kind, _path(name, kind, location), image_size, skip_unreadable)
    if image_size is not None and name not in BUILT_IN and kind not in RESIZED:
        raise BadRequest(f"the images of data set '{name}' have one size: leave out --image-size")
    if skip_unreadable:
        raise BadRequest(f"data set '{name}' is read as a whole: leave out --skip-unreadable")
    if name in BUILT_IN:
        return at_size(BUILT_IN[name], image_size)
    if not colon or kind not in READ:
        known = dict.fromkeys([*BUILT_IN, *READ.values(), *STREAMED.values(), *DETECTION.values()])
        raise unknown("data set", name, list(known), "datasets")
    return _described(kind, _path(name, kind, location), image_size)


def _fold(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def spelled(name: str) -> str:
    """Our spelling of a data set's name: ``cifar100`` for CIFAR-100, ``npz:Mine.npz`` for NPZ:Mine.npz."""
    kind, colon, location = name.strip().partition(":")
    return (reserved(kind) or kind) + colon + location


def task_of(name: str) -> str:
    """Name of the task that a data set is for, as the user names the set; reads no file."""
    return "detection" if spelled(name).partition(":")[0] in DETECTION else "classification"


def reserved(name: str) -> str | None:
    """The data set, or the kind of files, that a name in any spelling means."""
    known = {_fold(each): each for each in (*BUILT_IN, *STREAMED, *READ, *DETECTION)}
    return known.get(_fold(name))


def _path(name: str, kind: str, location: str) -> Path:
    if kind == "hf" and location and not Path(location.partition("#")[0]).expanduser().exists():
        return Path(location)  # a name of the hub
    if location:
        return Path(location).expanduser().resolve()
    how = ""
    if kind in STREAMED:
        how = f"; 'kdtable fetch-data {kind} --from DIR' unpacks the official archives"
    elif kind in DETECTION:
        how = f"; 'kdtable fetch-data {kind}' gets the published set"
    raise BadRequest(f"data set '{name}' lacks a path: write {kind}:PATH{how}")


def _streamed(kind: str, path: Path, size: int, skip_unreadable: bool, on_progress: OnProgress | None) -> DataSpec:
    from kdtable.data import unreadable
    from kdtable.data.formats import image_folders

    _check_size(size)
    listing = image_folders.listed(kind, path)
    skipped: tuple[str, ...] = ()
    if skip_unreadable:
        skipped = unreadable.find(path, listing, on_progress)
        listing = image_folders.without(path, listing, skipped)
    notes = (*unreadable.notes(skipped), *listing.notes)
    return DataSpec(
        name=path.name,
        # The size is part of the key, since accuracies depend on it.
        key=f"{_key(path.name, listing.sha256)}-{size}",
        kind=kind,
        path=path,
        sha256=listing.sha256,
        num_classes=listing.num_classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        image_size=size,
        train_count=len(listing.train),
        test_count=len(listing.test),
        skipped=skipped,
        notes=notes,
    )


def _with_boxes(kind: str, path: Path, size: int | None, skip_unreadable: bool) -> DataSpec:
    """A detection set; by default published images are resized to 800 pixels, and others as little as possible."""
    from kdtable.data.detection.folders import read as read_boxes

    if size is not None:
        _check_size(size)
    found = read_boxes(kind, path, skip=skip_unreadable)
    chosen = size or (800 if found.official else min(800, max(min(one.size) for one in found.boxes["train"])))
    return DataSpec(
        name=path.name,
        key=f"{_key(path.name, found.sha256)}-{chosen}",
        kind=kind,
        path=path,
        sha256=found.sha256,
        num_classes=len(found.classes),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        image_size=chosen,
        train_count=len(found.train),
        test_count=len(found.test),
        skipped=found.skipped,
        mended=skip_unreadable,
        classes=found.classes,
        notes=found.notes,
    )


def _check_size(size: int) -> None:
    if size not in CROP_SIZES:
        raise BadRequest(f"--image-size is from {CROP_SIZES[0]} to {CROP_SIZES[-1]} pixels, not {size}")


def _described(kind: str, path: Path, size: int | None) -> DataSpec:
    if size is not None:
        _check_size(size)
    content = read(kind, path, size)
    # only a file has a suffix: a folder may be called "v1.2"
    name = path.stem if kind == "npz" else path.name.partition("#")[0] if kind == "hf" else path.name
    return DataSpec(
        name=name,
        key=_key(name, content.sha256) + (f"-{size}" if content.resized else ""),
        kind=kind,
        path=path,
        sha256=content.sha256,
        num_classes=content.num_classes,
        mean=content.mean,
        std=content.std,
        image_size=content.arrays["train_images"].shape[-1],
        train_count=len(content.arrays["train_images"]),
        test_count=len(content.arrays["test_images"]),
        resized=content.resized,
        notes=content.notes,
    )


def _key(name: str, sha256: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}-{sha256[:8]}"


def read(kind: str, path: Path, size: int | None = None) -> "Contents":
    """Read an ``npz`` file, an image ``folder`` (decoded again only when the files change), or a set of Hugging Face.

    ``size`` is what the images of a folder or of such a set are scaled and cropped to; by default they must have one
    size.

    Raises:
        BadRequest: it does not exist, or its contents do not have the documented layout.
    """
    if kind == "npz":
        from kdtable.data.formats import npz

        return npz.read(path)
    if kind == "hf":
        from kdtable.data.formats import hf

        return hf.read(str(path), size)
    from kdtable.data.formats import folder

    return folder.read(path, size)
