"""Sets in one npz file.

Arrays: ``train_images`` and ``test_images`` (N, 3, S, S) uint8; ``train_labels`` and ``test_labels`` (N,) of
any integer type; optional ``num_classes`` (a scalar; else the largest label + 1), ``mean`` and ``std``
((3,), for pixels in [0, 1]; else those of the training images). Others are ignored.
"""

import hashlib
import io
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtable.data.files import Contents, channel_statistics, check_size, check_std
from kdtable.data.spec import Rgb
from kdtable.errors import BadRequest

Arrays = dict[str, NDArray[Any]]

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
OPTIONAL = ("num_classes", "mean", "std")

# what zipfile and numpy raise on damaged bytes
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    MemoryError,
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
    return _checked(path, _decode(path, content), hashlib.sha256(content).hexdigest())


def _decode(path: Path, content: bytes) -> Arrays:
    try:
        sizes = {entry.filename: entry.file_size for entry in zipfile.ZipFile(io.BytesIO(content)).infolist()}
    except _DAMAGE as error:
        raise BadRequest(f"{path}: not an npz file, or cut short ({error})") from error
    present = [name for name in REQUIRED + OPTIONAL if f"{name}.npy" in sizes]
    if missing := [name for name in REQUIRED if name not in present]:
        raise BadRequest(f"{path}: has no array {', '.join(missing)}; expected {', '.join(REQUIRED)}")
    check_size(path, sum(sizes[f"{name}.npy"] for name in present))
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: _array(path, archive, name) for name in present}


def _array(path: Path, archive: Any, name: str) -> NDArray[Any]:
    try:
        value = archive[name]
    except _DAMAGE as error:
        raise BadRequest(f"{path}: array {name} cannot be read ({error})") from error
    if not isinstance(value, np.ndarray):
        raise BadRequest(f"{path}: {name} is not an array")
    return value


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
