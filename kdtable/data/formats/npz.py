"""Read a set from an npz file.

Arrays: ``train_images`` and ``test_images``, (N, 3, S, S) uint8; ``train_labels`` and ``test_labels``, (N,) of any
integer type. Optional: ``num_classes`` (a scalar; default the largest label + 1), ``mean`` and ``std`` ((3,), for
pixels in [0, 1]; default those of the training images). Others are ignored.

Images may also have channels last, be grey ((N, S, S), or one channel), or be floats in [0, 1]; labels may be (N, 1).
A note says how images were converted.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdtable.data.contents import REQUIRED, Arrays, Contents, channel_statistics, check_size, check_std
from kdtable.data.spec import Rgb
from kdtable.errors import BadRequest, several
from kdtable.files.array_files import array_header
from kdtable.files.trees import MAX_DIRECTORY
from kdtable.files.zips import open_zip

OPTIONAL: Final = ("num_classes", "mean", "std")

#: Limit of classes; with more a classifier would not fit into memory.
MOST_CLASSES: Final = 100_000


def read(path: Path) -> Contents:
    """Read and check the npz file at ``path``; `BadRequest` names the array that is wrong."""
    if not path.is_file():
        raise BadRequest(f"{path}: no such npz file")
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, modified: int, size: int) -> Contents:
    """Cached by modification time and size, so that `resolve` and `load` decode the file once."""
    check_size(path, size)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read ({error.strerror})") from error
    # hash and decode the same bytes: the file may change in between
    arrays = read_arrays(path, io.BytesIO(content), REQUIRED, OPTIONAL)
    return checked(path, arrays, hashlib.sha256(content).hexdigest())


def read_arrays(path: Path, file: BinaryIO, required: Sequence[str], optional: Sequence[str] = ()) -> Arrays:
    """Read named arrays from the npz in ``file``; ``path`` is its name in errors.

    Raises:
        BadRequest: it is not an npz, is damaged, lacks a required array, or would take too much memory.
    """
    try:
        archive = open_zip(file, MAX_DIRECTORY)
    except Exception as error:  # zipfile raises a dozen kinds on damaged bytes
        raise BadRequest(f"{path}: not an npz file, or cut short ({error})") from error
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    present = [name for name in (*required, *optional) if f"{name}.npy" in sizes]
    if missing := [name for name in required if name not in present]:
        raise BadRequest(f"{path}: has no array {', '.join(missing)}; expected {', '.join(required)}")
    check_size(path, sum(sizes[f"{name}.npy"] for name in present))
    return {name: _array(path, archive, name) for name in present}


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array after comparing its header with the entry's size; never unpickles.

    ``np.load`` is not used: it allocates what a header claims, and may read an entry without a suffix instead.
    """
    entry = archive.getinfo(f"{name}.npy")
    try:
        array_header(archive, entry)
        with archive.open(entry) as file:  # the checksum is verified at the end
            return npy.read_array(file, allow_pickle=False)
    except Exception as error:  # NumPy and zipfile raise a dozen kinds on damaged bytes
        raise BadRequest(f"{path}: array {name} cannot be read ({error})") from error


def checked(path: Path | str, arrays: Arrays, sha256: str) -> Contents:
    """Check and convert arrays; ``path`` is where they are from, for errors.

    Raises:
        BadRequest: an array does not have the documented layout.
    """
    notes: list[str] = []
    for part in ("train", "test"):
        arrays[f"{part}_images"] = _images(path, f"{part}_images", arrays[f"{part}_images"], notes)
        arrays[f"{part}_labels"] = _labels(path, arrays, part)
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise BadRequest(
            f"{path}: test_images has shape {arrays['test_images'].shape}; expected images of the size of "
            f"train_images, {arrays['train_images'].shape}"
        )
    num_classes = _num_classes(path, arrays)
    if "num_classes" not in arrays:
        notes += _absent(arrays, num_classes)
    mean, std = (_triple(path, arrays, name) for name in ("mean", "std"))
    if mean is None or std is None:
        computed_mean, computed_std = channel_statistics(arrays["train_images"])
        mean, std = mean or computed_mean, std or computed_std
    check_std(path, std)
    return Contents(sha256, num_classes, mean, std, {name: arrays[name] for name in REQUIRED}, tuple(notes))


def _images(path: Path | str, name: str, images: NDArray[Any], notes: list[str]) -> NDArray[np.uint8]:
    """Convert images to (N, 3, S, S) uint8, if the layout is unambiguous."""
    found = images[:, None] if images.ndim == 3 else images
    if found.ndim == 4 and found.shape[1] not in (1, 3) and found.shape[3] in (1, 3):
        found = found.transpose(0, 3, 1, 2)
    if found.ndim == 4 and found.shape[1] == 1:
        found = np.broadcast_to(found, (len(found), 3, *found.shape[2:]))
    check_size(path, found.size)
    good = found.ndim == 4 and found.shape[1] == 3 and found.shape[2] == found.shape[3] and found.size > 0
    if good and found.dtype.kind == "f" and found.min() >= 0 and found.max() <= 1:
        found = np.rint(found * 255).astype(np.uint8)
    if not good or found.dtype != np.uint8:
        raise BadRequest(
            f"{path}: {name} has shape {images.shape} of {images.dtype}; expected (N, 3, S, S) of uint8, not empty"
        )
    if found is images:
        return images
    notes.append(f"{name} of shape {images.shape} of {images.dtype} is read as {found.shape} of uint8")
    return np.ascontiguousarray(found)


def _labels(path: Path | str, arrays: Arrays, part: str) -> NDArray[np.int64]:
    labels, count = arrays[f"{part}_labels"], len(arrays[f"{part}_images"])
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise BadRequest(
            f"{path}: {part}_labels has shape {labels.shape} of {labels.dtype}; expected ({count},) of an "
            f"integer type, one for each of {part}_images"
        )
    return labels.astype(np.int64).reshape(count)


def _num_classes(path: Path | str, arrays: Arrays) -> int:
    labels = {name: arrays[name] for name in ("train_labels", "test_labels")}
    count = max(int(part.max()) for part in labels.values()) + 1
    if "num_classes" in arrays:
        given = arrays["num_classes"]
        if given.dtype.kind not in "iu" or given.shape not in ((), (1,)) or int(given.item()) < 1:
            raise BadRequest(f"{path}: num_classes is {given}; expected one integer above zero")
        count = int(given.item())
    if count > MOST_CLASSES:
        raise BadRequest(f"{path}: has {count} classes, and more than {MOST_CLASSES} are not supported")
    for name, values in labels.items():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= count:
            raise BadRequest(f"{path}: {name} run from {low} to {high}; expected 0 to {count - 1}")
    return count


def _absent(arrays: Arrays, num_classes: int) -> list[str]:
    """A sentence about classes without training images, if there are any."""
    absent = np.setdiff1d(np.arange(num_classes), arrays["train_labels"]).tolist()
    if not absent:
        return []
    return [
        f"labels run to {num_classes - 1}, which makes {num_classes} classes; no training image is of class "
        f"{several([str(label) for label in absent])}"
    ]


def _triple(path: Path | str, arrays: Arrays, name: str) -> Rgb | None:
    if name not in arrays:
        return None
    given = arrays[name]
    if given.dtype.kind not in "fiu" or given.shape != (3,) or not ((given >= 0) & (given <= 1)).all():
        raise BadRequest(f"{path}: {name} is {given}; expected three numbers from 0 to 1, for pixels in [0, 1]")
    red, green, blue = (float(value) for value in given)
    return red, green, blue
