"""Image files that may come from strangers, as pixels."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdtable.errors import BadRequest

# Whatever a file is called, it is read as one of these: other readers of Pillow start programs.
FORMATS = ("PNG", "JPEG")

_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@contextmanager
def opened(where: object, content: bytes) -> Iterator[Image.Image]:
    """An image of which only the head has been read; what goes wrong inside the block is said of ``where``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        yield image
    except _UNREADABLE as error:
        raise BadRequest(f"{where}: not an image that can be read ({error})") from error


def pixels(where: object, content: bytes, size: int, why: str = "") -> NDArray[np.uint8]:
    """Pixels (3, S, S) of an image file, decoded only if it says that it has that size; grey ones in three channels.

    Args:
        where: what errors call the file.
        content: its bytes.
        size: height and width.
        why: ends the sentence about another size.

    Raises:
        BadRequest: it is damaged, of another size, or of more than 8 bits.
    """
    with opened(where, content) as image:
        if image.size != (size, size):
            raise BadRequest(f"{where}: {image.width} x {image.height} pixels; expected {size} x {size}{why}")
        # 16-bit and float pixels have no one way into 8 bits
        if image.mode.startswith(("I", "F")):
            raise BadRequest(f"{where}: has pixels of more than 8 bits; expected 8-bit colour or grey")
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
