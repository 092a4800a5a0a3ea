"""Map-style data sets, ``(image, label)`` by position as torchvision's, read into arrays."""

import hashlib
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdtable.data.contents import REQUIRED, Arrays, check_size
from kdtable.data.crops import fitted
from kdtable.data.pixels import as_rgb
from kdtable.errors import BadRequest

#: Of another size; the end of a sentence.
RESIZE: Final = " (--image-size N scales and crops all to N x N)"


class MapStyle(Protocol):
    """A data set with a length, whose items are ``(image, label)``.

    An image is one of Pillow's, an array (H, W), (H, W, 3) or (3, H, W) of uint8 or of floats in [0, 1], or a tensor of
    that kind. A label is an integer from 0.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def read_arrays(where: str, train: MapStyle, test: MapStyle, size: int | None = None) -> tuple[Arrays, int]:
    """Read the images and labels of two map-style data sets, without random transforms.

    Example:
        arrays, resized = read_arrays("svhn", SVHN("data", "train"), SVHN("data", "test"))

    Args:
        where: their name in errors.
        train: training images.
        test: test images.
        size: height and width that images are scaled and cropped to; by default all must have the first one's size.

    Returns:
        Arrays as an npz file has them; and the number of images that had another size.

    Raises:
        BadRequest: an item is no image with a label, images differ in size, or change from one reading to the next.
    """
    if not len(train) or not len(test):
        raise BadRequest(f"{where}: has {len(train)} training and {len(test)} test images; both parts need some")
    first = _image(where, train, 0)
    if not np.array_equal(np.asarray(first), np.asarray(_image(where, train, 0))):
        raise BadRequest(f"{where}: an image differs from one reading to the next: leave random transforms out")
    if size is None and first.width != first.height:
        raise BadRequest(f"{where}: {first.width} x {first.height} pixels; expected square images{RESIZE}")
    side, changed = first.width if size is None else size, 0
    check_size(where, (len(train) + len(test)) * 3 * side**2)
    found: Arrays = {}
    for part, images, labels in ((train, *REQUIRED[:2]), (test, *REQUIRED[2:])):
        found[images], found[labels], count = _part(where, part, side, resizes=size is not None)
        changed += count
    return found, changed


def content_hash(arrays: Arrays, num_classes: int) -> str:
    """SHA-256 of images, labels and the number of classes."""
    digest = hashlib.sha256(b"%d" % num_classes)
    for name in REQUIRED:
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _part(where: str, part: MapStyle, side: int, *, resizes: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    images = np.empty((len(part), 3, side, side), dtype=np.uint8)
    labels, changed = np.empty(len(part), dtype=np.int64), 0
    for index in range(len(part)):
        image, label = _item(where, part, index)
        rgb = as_rgb(f"{where}, image {index}", _opened(where, index, image))
        if rgb.size != (side, side):
            if not resizes:
                sizes = f"{rgb.width} x {rgb.height} pixels; expected {side} x {side}"
                raise BadRequest(f"{where}, image {index}: {sizes}, the size of the first training image{RESIZE}")
            rgb, changed = fitted(rgb, side), changed + 1
        images[index] = np.asarray(rgb).transpose(2, 0, 1)
        labels[index] = _label(where, index, label)
    return images, labels, changed


def _image(where: str, part: MapStyle, index: int) -> Image.Image:
    return as_rgb(f"{where}, image {index}", _opened(where, index, _item(where, part, index)[0]))


def _item(where: str, part: MapStyle, index: int) -> tuple[Any, Any]:
    item = part[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise BadRequest(f"{where}, image {index}: the item is a {type(item).__name__}; expected (image, label)")
    return item[0], item[1]


def _label(where: str, index: int, label: Any) -> int:
    try:
        number = np.asarray(label)
        if number.dtype.kind in "iu" and number.size == 1 and number.item() >= 0:
            return int(number.item())
    except (TypeError, ValueError):
        pass
    raise BadRequest(f"{where}, image {index}: its label is {label!r:.40}; expected an integer from 0")


def _opened(where: str, index: int, image: Any) -> Image.Image:
    """An item's image as one of Pillow's."""
    if isinstance(image, Image.Image):
        return image
    found = np.asarray(image)
    if found.ndim == 3 and found.shape[0] in (1, 3) and found.shape[2] not in (1, 3):
        found = found.transpose(1, 2, 0)
    if found.ndim == 3 and found.shape[2] == 1:
        found = found[:, :, 0]
    shaped = found.size > 0 and (found.ndim == 2 or (found.ndim == 3 and found.shape[2] == 3))
    if shaped and found.dtype.kind == "f" and found.min() >= 0 and found.max() <= 1:
        found = np.rint(found * 255).astype(np.uint8)
    if not shaped or found.dtype != np.uint8:
        what = f"shape {found.shape} of {found.dtype}"
        raise BadRequest(f"{where}, image {index}: has {what}; expected (3, H, W) or (H, W, 3) of uint8")
    return Image.fromarray(np.ascontiguousarray(found))
