"""Sets in one npz file.

Arrays: ``train_images`` and ``test_images`` (N, 3, S, S) uint8; ``train_labels`` and ``test_labels`` (N,) of
any integer type; optional ``num_classes`` (a scalar; else the largest label + 1), ``mean`` and ``std``
((3,), for pixels in [0, 1]; else those of the training images). Others are ignored.
"""

import ast
import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kdtable.data.contents import (
    Contents,
    channel_statistics,
    check_size,
    check_std,
)
from kdtable.data.spec import Rgb
from kdtable.errors import BadRequest
from kdtable.files.zips import open_zip

Arrays = dict[str, NDArray[Any]]

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
OPTIONAL = ("num_classes", "mean", "std")

#: That of an array of numbers is shorter than 200 bytes.
MAX_HEADER = 10_000

#: Bytes that are read at once.
PART = 2**24

#: More would only make a classifier that no memory holds.
MOST_CLASSES = 100_000

# what zipfile, numpy and Python's parser raise on damaged bytes
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    TypeError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    OverflowError,
)


def read(path: Path) -> Contents:
    """The checked contents of the npz file at ``path``; `BadRequest` names the array that is wrong."""
    if not path.is_file():
        raise BadRequest(f"{path}: no such npz file")
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, modified: int, size: int) -> Contents:
    """Keyed by what changes with the file, so that resolving and loading decode it once."""
    check_size(path, size)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read ({error.strerror})") from error
    # hashed and decoded from the same bytes: the file may change in between
    arrays = read_arrays(path, io.BytesIO(content), REQUIRED, OPTIONAL)
    return _checked(path, arrays, hashlib.sha256(content).hexdigest())


def read_arrays(path: Path, file: BinaryIO, required: Sequence[str], optional: Sequence[str] = ()) -> Arrays:
    """The named arrays of the npz in ``file``, which errors call ``path``.

    Raises:
        BadRequest: it is none, or damaged; it lacks a required one; or they would take too much memory.
    """
    try:
        archive = open_zip(file)
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    except _DAMAGE as error:
        raise BadRequest(f"{path}: not an npz file, or cut short ({error})") from error
    present = [name for name in (*required, *optional) if f"{name}.npy" in sizes]
    if missing := [name for name in required if name not in present]:
        raise BadRequest(f"{path}: has no array {', '.join(missing)}; expected {', '.join(required)}")
    check_size(path, sum(sizes[f"{name}.npy"] for name in present))
    return {name: _array(path, archive, name) for name in present}


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array, read once its header has been compared with the bytes that there are; never by unpickling."""
    entry = archive.getinfo(f"{name}.npy")
    try:
        with archive.open(entry) as file:
            shape, fortran, dtype = _header(file)
            size = math.prod(shape) * dtype.itemsize
            if file.tell() + size != entry.file_size:
                raise ValueError(f"its shape {shape} of {dtype} does not fit its {entry.file_size} bytes")
            return _numbers(file, size).view(dtype).reshape(shape, order="F" if fortran else "C")
    except _DAMAGE as error:
        raise BadRequest(f"{path}: array {name} cannot be read ({error})") from error


def _numbers(file: IO[bytes], size: int) -> NDArray[np.uint8]:
    """The next ``size`` bytes, which are the rest of an entry, so that its checksum is compared at their end.

    In parts, because an array may be so large that no second copy of it should be made; and by their number, because
    without it a compressed entry would be unfolded as far as it goes, whatever it claims.
    """
    numbers = np.empty(size, np.uint8)
    for start in range(0, size, PART):
        part = file.read(min(PART, size - start))
        numbers[start : start + len(part)] = np.frombuffer(part, np.uint8)
        if len(part) < min(PART, size - start):
            raise EOFError("it is cut short")
    return numbers


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type that the head of an npy entry claims.

    numpy's own readers try to repair what is no header, and fail in further ways.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise ValueError("it is no array of the npy format, version 1 or 2")
    length = int.from_bytes(file.read(2 if magic[6] == 1 else 4), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length} bytes")
    head = ast.literal_eval(file.read(length).decode("latin-1").strip())
    if not isinstance(head, dict) or head.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header is none")
    shape, descr, fortran = head["shape"], head["descr"], head["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its shape is {shape}")
    if not isinstance(descr, str) or np.dtype(descr).hasobject or not np.dtype(descr).itemsize:
        raise ValueError(f"its elements are {descr}")
    return shape, bool(fortran), np.dtype(descr)


def _checked(path: Path, arrays: Arrays, sha256: str) -> Contents:
    for name in ("train_images", "test_images"):
        _check_images(path, name, arrays[name])
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise BadRequest(
            f"{path}: test_images has shape {arrays['test_images'].shape}; expected images of the size of "
            f"train_images, {arrays['train_images'].shape}"
        )
    labels = {part: _labels(path, arrays, part) for part in ("train", "test")}
    num_classes = _num_classes(path, arrays, labels)
    mean, std = _statistics(path, arrays)
    return Contents(
        sha256=sha256,
        num_classes=num_classes,
        mean=mean,
        std=std,
        train_images=arrays["train_images"],
        train_labels=labels["train"],
        test_images=arrays["test_images"],
        test_labels=labels["test"],
    )


def _check_images(path: Path, name: str, images: NDArray[Any]) -> None:
    shape = images.shape
    good = images.ndim == 4 and shape[1] == 3 and shape[2] == shape[3] and images.size > 0
    if not good or images.dtype != np.uint8:
        raise BadRequest(
            f"{path}: {name} has shape {shape} of {images.dtype}; expected (N, 3, S, S) of uint8, not empty"
        )


def _labels(path: Path, arrays: Arrays, part: str) -> NDArray[np.int64]:
    labels, count = arrays[f"{part}_labels"], len(arrays[f"{part}_images"])
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise BadRequest(
            f"{path}: {part}_labels has shape {labels.shape} of {labels.dtype}; expected ({count},) of an "
            f"integer type, one for each of {part}_images"
        )
    return labels.astype(np.int64)


def _num_classes(path: Path, arrays: Arrays, labels: dict[str, NDArray[np.int64]]) -> int:
    count = max(int(part.max()) for part in labels.values()) + 1
    if "num_classes" in arrays:
        given = arrays["num_classes"]
        if given.dtype.kind not in "iu" or given.shape not in ((), (1,)) or int(given.item()) < 1:
            raise BadRequest(f"{path}: num_classes is {given}; expected one integer above zero")
        count = int(given.item())
    if count > MOST_CLASSES:
        raise BadRequest(f"{path}: has {count} classes, and more than {MOST_CLASSES} are not supported")
    for part, values in labels.items():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= count:
            raise BadRequest(f"{path}: {part}_labels run from {low} to {high}; expected 0 to {count - 1}")
    return count


def _statistics(path: Path, arrays: Arrays) -> tuple[Rgb, Rgb]:
    mean, std = (_triple(path, arrays, name) for name in ("mean", "std"))
    if mean is None or std is None:
        computed_mean, computed_std = channel_statistics(arrays["train_images"])
        mean, std = mean or computed_mean, std or computed_std
    check_std(path, std)
    return mean, std


def _triple(path: Path, arrays: Arrays, name: str) -> Rgb | None:
    if name not in arrays:
        return None
    given = arrays[name]
    if given.dtype.kind not in "fiu" or given.shape != (3,) or not ((given >= 0) & (given <= 1)).all():
        raise BadRequest(f"{path}: {name} is {given}; expected three numbers from 0 to 1, for pixels in [0, 1]")
    red, green, blue = (float(value) for value in given)
    return red, green, blue
