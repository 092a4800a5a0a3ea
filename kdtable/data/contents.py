"""Image sets from the user's files as NumPy arrays, with checks."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdtable.data.spec import Rgb
from kdtable.errors import BadRequest

# Limit of an image file, which is read at once; enough for 4096 x 4096 pixels as PNG.
MAX_FILE_BYTES = 64 * 2**20

# Limit of a set that is decoded into memory as a whole.
MAX_BYTES = 4 * 2**30

Arrays = dict[str, NDArray[Any]]

#: Arrays of a set in memory: images (N, 3, S, S) uint8, labels (N,) int64.
REQUIRED: Final = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Contents:
    """A decoded set.

    Attributes:
        sha256: of the files' contents.
        num_classes: labels are 0 .. num_classes - 1.
        mean: per channel, of pixels in [0, 1].
        std: as ``mean``.
        arrays: by the names in ``REQUIRED``.
        notes: sentences about what was left out or assumed.
        resized: whether an image had another size than those of ``arrays``.
    """

    sha256: str
    num_classes: int
    mean: Rgb
    std: Rgb
    arrays: Arrays
    notes: tuple[str, ...] = ()
    resized: bool = False


def check_size(path: Path | str, decoded_bytes: int) -> None:
    """Raise `BadRequest` if a set is too large for memory."""
    if decoded_bytes > MAX_BYTES:
        raise BadRequest(
            f"{path}: {decoded_bytes / 2**30:.1f} GiB once decoded, and sets of more than "
            f"{MAX_BYTES / 2**30:g} GiB are not supported"
        )


def channel_statistics(images: NDArray[Any]) -> tuple[Rgb, Rgb]:
    """Mean and population standard deviation per channel of (N, 3, H, W) uint8, in [0, 1] units.

    Computed from exact integer sums over a histogram, so it depends neither on order nor on platform.
    """
    means, stds = [], []
    for channel in range(3):
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), 1024):  # bincount copies its input to 8-byte integers
            counts += np.bincount(images[start : start + 1024, channel].ravel(), minlength=256)
        total = sum(counts.tolist())
        first = sum(value * count for value, count in enumerate(counts.tolist()))
        second = sum(value**2 * count for value, count in enumerate(counts.tolist()))
        means.append(first / total / 255)
        stds.append(math.sqrt((total * second - first**2) / total**2) / 255)
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def check_std(path: Path | str, std: Rgb) -> None:
    """Raise `BadRequest` if a channel cannot be normalised."""
    if min(std) <= 0:
        raise BadRequest(f"{path}: std is {std}; expected three numbers above zero (is a colour channel constant?)")
