"""Resolve data sets by name and read their contents. Does not import torch."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from kdtable.data.spec import (
    BUILT_IN,
    CROP_SIZE,
    CROP_SIZES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    STREAMED,
    DataSpec,
    OnProgress,
)
from kdtable.errors import BadRequest, unknown

if TYPE_CHECKING:
    from kdtable.data.contents import Contents


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
        image_size: size of a streamed set's crops; by default ``CROP_SIZE``.
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
    if image_size is not None:
        raise BadRequest(f"the images of data set '{name}' have one size: leave out --image-size")
    if skip_unreadable:
        raise BadRequest(f"data set '{name}' is read as a whole: leave out --skip-unreadable")
    if name in BUILT_IN:
        return BUILT_IN[name]
    if not colon or kind not in ("npz", "folder"):
        raise unknown("data set", name, [*BUILT_IN, "npz:PATH", "folder:PATH", *STREAMED.values()], "datasets")
    return _described(kind, _path(name, kind, location))


def _fold(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def spelled(name: str) -> str:
    """Our spelling of a data set's name: ``cifar100`` for CIFAR-100, ``npz:Mine.npz`` for NPZ:Mine.npz."""
    kind, colon, location = name.strip().partition(":")
    return (reserved(kind) or kind) + colon + location


def reserved(name: str) -> str | None:
    """The data set, or the kind of files, that a name in any spelling means."""
    known = {_fold(each): each for each in (*BUILT_IN, *STREAMED, "npz", "folder")}
    return known.get(_fold(name))


def _path(name: str, kind: str, location: str) -> Path:
    if location:
        return Path(location).expanduser().resolve()
    how = f"; 'kdtable fetch-data {kind} --from DIR' unpacks the official archives" if kind in STREAMED else ""
    raise BadRequest(f"data set '{name}' lacks a path: write {kind}:PATH{how}")


def _streamed(kind: str, path: Path, size: int, skip_unreadable: bool, on_progress: OnProgress | None) -> DataSpec:
    from kdtable.data import unreadable
    from kdtable.data.formats import image_folders

    if size not in CROP_SIZES:
        raise BadRequest(f"--image-size is from {CROP_SIZES[0]} to {CROP_SIZES[-1]} pixels, not {size}")
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


def _described(kind: str, path: Path) -> DataSpec:
    content = read(kind, path)
    # only a file has a suffix: a folder may be called "v1.2"
    name = path.stem if kind == "npz" else path.name
    return DataSpec(
        name=name,
        key=_key(name, content.sha256),
        kind=kind,
        path=path,
        sha256=content.sha256,
        num_classes=content.num_classes,
        mean=content.mean,
        std=content.std,
        image_size=content.arrays["train_images"].shape[-1],
        train_count=len(content.arrays["train_images"]),
        test_count=len(content.arrays["test_images"]),
        notes=content.notes,
    )


def _key(name: str, sha256: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}-{sha256[:8]}"


def read(kind: str, path: Path) -> "Contents":
    """Read an ``npz`` file or image ``folder``; decoded again only when the files change.

    Raises:
        BadRequest: it does not exist, or its contents do not have the documented layout.
    """
    if kind == "npz":
        from kdtable.data.formats import npz

        return npz.read(path)
    from kdtable.data.formats import folder

    return folder.read(path)
