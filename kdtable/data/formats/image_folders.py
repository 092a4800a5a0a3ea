"""List the images of a set: names, sizes and labels. No image is opened.

``folder`` and ``imagenet``: ``train/CLASS/*`` and ``test/CLASS/*`` or ``val/CLASS/*``, with the suffixes in
``SUFFIXES`` in any case, at any depth below the class folder. A class's index is its position among the sorted names of
the class folders. Images are sorted by name, those in deeper folders last.

``cub200``: the published folder ``CUB_200_2011``, see `kdtable.data.formats.cub200`.

Files and folders whose names begin with a dot are ignored. Links are followed only inside the set's folder.
"""

import os
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from kdtable.data.formats import cub200
from kdtable.data.listing import Entry, Listing, Part, check_bytes, check_inside, image_bytes
from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest, several

#: The suffixes of torchvision's ``ImageFolder``.
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

#: Names of the folder of test images by kind; the first that exists is used.
_TESTS: Final = {"folder": ("test", "val"), "imagenet": ("val", "test")}

_ENDINGS: Final = tuple(map(os.fsencode, SUFFIXES))

#: Files that operating systems create, besides those that begin with a dot.
_SYSTEM: Final = (b"Thumbs.db", b"desktop.ini")


def listed(kind: str, root: Path) -> Listing:
    """List the images of a set in the folder ``root``, without the cache.

    Raises:
        BadRequest: the folder does not have the documented layout; the text names what is wrong.
    """
    _last.cache_clear()
    try:
        return _last(kind, root)
    except OSError as error:
        raise BadRequest(f"{os.fsdecode(error.filename or root)}: cannot be read ({error.strerror})") from error


@lru_cache(maxsize=1)
def _last(kind: str, root: Path) -> Listing:
    """As `listed`, cached, so that `load` does not list a million files again after `resolve`."""
    return cub200.listed(root) if kind == "cub200" else _image_folder(root, _TESTS[kind])


def without(root: Path, listing: Listing, names: Collection[str]) -> Listing:
    """The listing without the unreadable images ``names``.

    Raises:
        BadRequest: a class would have no training image left, or the test part no image.
    """
    if not names:
        return listing
    left = Listing(listing.num_classes, listing.train.without(names), listing.test.without(names), listing.ignored)
    if len(set(left.train.labels.tolist())) < left.num_classes or not len(left.test):
        raise BadRequest(
            f"{root}: {len(names)} images cannot be read, among them all of a class (the first: {min(names)})"
        )
    return left


def described(spec: DataSpec) -> Listing:
    """The listing of a resolved set.

    Raises:
        BadRequest: names, sizes or labels have changed since it was resolved.
    """
    assert spec.path is not None  # `resolve` sets the path of such a set
    for listing in (_last, listed):
        used = without(spec.path, listing(spec.kind, spec.path), spec.skipped)
        if used.sha256 == spec.sha256:
            return used
    raise BadRequest(f"{spec.path}: has changed while it was in use; start again")


def _image_folder(root: Path, tests: tuple[str, str]) -> Listing:
    if not root.is_dir():
        raise BadRequest(f"{root}: no such folder of images")
    test = next((part for part in tests if (root / part).is_dir()), tests[0])
    classes = {part: _classes(root, part) for part in ("train", test)}
    if odd := sorted(set(classes["train"]) ^ set(classes[test])):
        names = several(list(map(os.fsdecode, odd)))
        raise BadRequest(f"{root}: train and {test} differ in their classes: only one of them has {names}")
    ignored: list[str] = []
    parts = [Part.of(_entries(root, part, classes[part], ignored)) for part in ("train", test)]
    return Listing(len(classes[test]), parts[0], parts[1], tuple(ignored))


def _classes(root: Path, part: str) -> list[bytes]:
    """Names of the class folders of a part, sorted."""
    folder = root / part
    if not folder.is_dir():
        raise BadRequest(f"{root}: has no folder {part}; expected train/CLASS/* and {part}/CLASS/*")
    with os.scandir(os.fsencode(folder)) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(b".") and entry.is_dir())
    if not names:
        raise BadRequest(f"{folder}: has no class folders; expected {part}/CLASS/*")
    return names


def _entries(root: Path, part: str, classes: list[bytes], ignored: list[str]) -> Iterator[Entry]:
    """The images of a part; appends the names of other files to ``ignored``."""
    start, inside = len(os.fsencode(root)) + 1, root.resolve()
    for label, name in enumerate(classes):
        folder, empty = root / part / os.fsdecode(name), True
        for file in _files(folder, inside):
            if file.name.lower().endswith(_ENDINGS):
                empty = False
                yield file.path[start:], _size(file, inside), label
            elif file.name not in _SYSTEM:
                ignored.append(os.fsdecode(file.path[start:]))
        if empty:
            raise BadRequest(f"{folder}: has no images; expected files that end in {', '.join(SUFFIXES)}")


def _files(top: Path, inside: Path) -> Iterator["os.DirEntry[bytes]"]:
    """All files in ``top``, recursively.

    torchvision's ``make_dataset`` is not used: it skips unreadable folders, and loops on links.
    """
    folders, seen = [top], set[Path]()
    while folders:
        folder = folders.pop()
        if (real := check_inside(folder, inside)) in seen:
            raise BadRequest(f"{folder}: is a link to a folder that is read already; remove it")
        seen.add(real)
        with os.scandir(os.fsencode(folder)) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(b".")), key=lambda e: e.name)
        yield from (entry for entry in found if not entry.is_dir())
        folders += [Path(os.fsdecode(entry.path)) for entry in reversed(found) if entry.is_dir()]


def _size(file: "os.DirEntry[bytes]", inside: Path) -> int:
    if file.is_symlink() or not file.is_file():
        return image_bytes(Path(os.fsdecode(file.path)), inside)
    return check_bytes(os.fsdecode(file.path), file.stat().st_size)
