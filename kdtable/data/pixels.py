"""Image files that may come from strangers, as pixels."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kdtable.errors import BadRequest

# Whatever a file is called, it is read as one of these: other readers of Pillow start programs.
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")

# An image with sides 1 and 50, enlarged to 256 and 12,800, still takes less memory than one of the largest.
MOST_ELONGATED = 50


@contextmanager
def opened(where: object, content: bytes) -> Iterator[Image.Image]:
    """An image of which only the head has been read; what goes wrong inside the block is said of ``where``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, which are not used, and of what is refused next
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_pixels(image)
        yield image
    except BadRequest:
        raise
    except UnidentifiedImageError as error:  # whose own text names the place in memory
        raise BadRequest(f"{where}: not an image that can be read (none of {', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's readers let pass a dozen kinds of errors on damaged bytes
        raise BadRequest(f"{where}: not an image that can be read ({error})") from error


def _check_pixels(image: Image.Image) -> None:
    """As Pillow warns; not by way of the warning, which belongs to the process and not to a thread."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"{pixels} pixels are more than {limit}: it may be made to fill the memory")


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
        return np.asarray(_rgb(where, image)).transpose(2, 0, 1)


def photograph(where: object, content: bytes) -> Image.Image:
    """An image file of any size in three channels of 8 bits.

    Raises:
        BadRequest: it is damaged, of more than 8 bits, of more pixels than Pillow takes for harmless, or a strip.
    """
    with opened(where, content) as image:
        # Its shorter side is enlarged to a given length, which would make anything of a line of pixels.
        if max(image.size) > MOST_ELONGATED * min(image.size):
            raise BadRequest(f"{where}: {image.width} x {image.height} pixels are a strip, not a photograph")
        return _rgb(where, image)


def _rgb(where: object, image: Image.Image) -> Image.Image:
    # 16-bit and float pixels have no one way into 8 bits
    if image.mode.startswith(("I", "F")):
        raise BadRequest(f"{where}: has pixels of more than 8 bits; expected 8-bit colour or grey")
    return image.convert("RGB")
