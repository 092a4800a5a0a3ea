"""What images a streamed set has: their names, sizes and labels. No image is opened.

``imagenet``: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` (or jpeg, png, in any case). A class's index is its place
among the sorted names of the class folders; images stand in the order of their names.

``cub200``: the folder ``CUB_200_2011`` as it was published. ``images.txt`` numbers the images, ``classes.txt`` the
classes, ``image_class_labels.txt`` and ``train_test_split.txt`` give each image its class and its part (1 is training).

Files and folders whose names begin with a dot are ignored. A link is followed inside the set's folder only.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from threading import Lock
from typing import Final

from kdtable.data.contents import MAX_FILE_BYTES
from kdtable.data.formats import cub200
from kdtable.data.listing import Entry, Listing, check_bytes, check_inside, image_bytes, lacking, part_of
from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest

_SUFFIXES: Final = (b".jpg", b".jpeg", b".png")

#: Class names that an error gives before it says how many more there are.
_NAMED: Final = 3

# The last listing, so that `load` need not read a million names again that `resolve` has just read.
_last: dict[Path, Listing] = {}
_lock = Lock()


def listed(kind: str, root: Path) -> Listing:
    """The images of the set of that kind in the folder ``root``, as they are now.

    Raises:
        BadRequest: the folder does not have the documented layout; the sentence names what is wrong.
    """
    try:
        found = cub200.listed(root) if kind == "cub200" else _image_folder(root)
    except OSError as error:
        raise BadRequest(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    with _lock:
        _last.clear()
        _last[root] = found
    return found


def without(root: Path, listing: Listing, names: Collection[str]) -> Listing:
    """The listing without the images of these names, which cannot be read.

    Raises:
        BadRequest: a class would have no training image left, or the test part none.
    """
    if not names:
        return listing
    left = Listing(listing.num_classes, lacking(listing.train, names), lacking(listing.test, names))
    if len(set(left.train.labels.tolist())) < left.num_classes or not len(left.test):
        raise BadRequest(
            f"{root}: {len(names)} images cannot be read, among them all of a class (the first: {min(names)})"
        )
    return left


def described(spec: DataSpec) -> Listing:
    """The images of a set that has been resolved.

    Raises:
        BadRequest: names, sizes or labels have changed since.
    """
    path = spec.path
    assert path is not None  # `resolve` gives every such set its path
    with _lock:
        listing = _last.get(path)
    if listing is None or (used := without(path, listing, spec.skipped)).sha256 != spec.sha256:
        used = without(path, listed(spec.kind, path), spec.skipped)
    if used.sha256 == spec.sha256:
        return used
    raise BadRequest(f"{path}: has changed while it was in use; start again")


def _image_folder(root: Path) -> Listing:
    if not root.is_dir():
        raise BadRequest(f"{root}: no such folder of images")
    classes, tests = _classes(root, "train"), _classes(root, "val")
    if odd := sorted(set(classes) ^ set(tests)):
        names = ", ".join(map(os.fsdecode, odd[:_NAMED]))
        more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
        raise BadRequest(f"{root}: train and val differ in their classes: only one of them has {names}{more}")
    inside = root.resolve()
    train, test = (part_of(_entries(root, inside, part, classes)) for part in ("train", "val"))
    return Listing(len(classes), train, test)


def _classes(root: Path, part: str) -> list[bytes]:
    """Names of the class folders of a part, sorted."""
    folder = root / part
    if not folder.is_dir():
        raise BadRequest(f"{root}: has no folder {part}; expected train/CLASS/*.jpg and val/CLASS/*.jpg")
    with os.scandir(os.fsencode(folder)) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(b".") and entry.is_dir())
    if not names:
        raise BadRequest(f"{folder}: has no class folders; expected {part}/CLASS/*.jpg")
    return names


def _entries(root: Path, inside: Path, part: str, classes: list[bytes]) -> Iterator[Entry]:
    prefix = os.fsencode(root) + b"/"
    for label, name in enumerate(classes):
        relative = os.fsencode(part) + b"/" + name + b"/"
        check_inside(Path(os.fsdecode(prefix + relative)), inside)
        with os.scandir(prefix + relative) as entries:
            found = sorted((entry.name, _size(entry, inside)) for entry in entries if _is_image(entry.name))
        if not found:
            where = os.fsdecode(prefix + relative[:-1])
            raise BadRequest(f"{where}: has no images; expected files that end in .jpg, .jpeg or .png")
        for file, size in found:
            yield relative + file, size, label


def _is_image(name: bytes) -> bool:
    return not name.startswith(b".") and name[-5:].lower().endswith(_SUFFIXES)


def _size(entry: "os.DirEntry[bytes]", inside: Path) -> int:
    if entry.is_symlink() or not entry.is_file():
        return image_bytes(Path(os.fsdecode(entry.path)), inside)
    size = entry.stat().st_size
    return check_bytes(os.fsdecode(entry.path), size) if size > MAX_FILE_BYTES else size
