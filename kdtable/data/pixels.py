"""Decode untrusted image files."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdtable.errors import BadRequest

# Formats that are read, whatever the file's name; some of Pillow's other readers start programs.
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")

# Limit of the ratio of the sides: 1 x 50, scaled to 256 x 12,800, takes less memory than the largest allowed image.
MOST_ELONGATED = 50


@contextmanager
def opened(where: object, content: bytes) -> Iterator[Image.Image]:
    """Open an image and read its header; errors in the block become `BadRequest` about ``where``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unused EXIF data, and about sizes that are checked next
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_pixels(image)
        yield image
    except BadRequest:
        raise
    except UnidentifiedImageError as error:  # its own text has a memory address
        raise BadRequest(f"{where}: not an image that can be read (none of {', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes
        raise BadRequest(f"{where}: not an image that can be read ({error})") from error


def _check_pixels(image: Image.Image) -> None:
    """Refuse sizes that Pillow would warn about; warning filters belong to the process, not to a thread."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"{pixels} pixels are more than {limit}: it may be made to fill the memory")


def pixels(where: object, content: bytes, size: int, why: str = "", *, as_shown: bool = False) -> NDArray[np.uint8]:
    """Decode an image file of a given size to (3, S, S); the size is checked first, and grey gets three channels.

    Args:
        where: the file's name in errors.
        content: its bytes.
        size: expected height and width.
        why: end of the error about another size.
        as_shown: turn the image as its EXIF orientation says, and put transparent pixels over black; else the stored
            pixels are taken without alpha, as torchvision's loaders do.

    Raises:
        BadRequest: it is damaged, of another size, or has more than 8 bits per channel.
    """
    with opened(where, content) as image:
        if image.size != (size, size):
            raise BadRequest(f"{where}: {image.width} x {image.height} pixels; expected {size} x {size}{why}")
        return np.asarray(_rgb(where, _as_shown(image) if as_shown else image)).transpose(2, 0, 1)


def decode_image(where: object, content: bytes, *, as_shown: bool = False) -> Image.Image:
    """Decode an image file of any size to RGB, 8 bits per channel; ``as_shown`` as for `pixels`.

    Raises:
        BadRequest: it is damaged, has more than 8 bits per channel, exceeds Pillow's limit of pixels, or is a strip.
    """
    with opened(where, content) as image:
        # The shorter side is scaled to a fixed length, so a strip could become huge.
        if max(image.size) > MOST_ELONGATED * min(image.size):
            raise BadRequest(f"{where}: {image.width} x {image.height} pixels are a strip, not a picture")
        return _rgb(where, _as_shown(image) if as_shown else image)


def as_rgb(where: object, image: Image.Image) -> Image.Image:
    """An opened image as a viewer shows it on black, in RGB of 8 bits per channel.

    Raises:
        BadRequest: it has more than 8 bits per channel.
    """
    return _rgb(where, _as_shown(image))


def _as_shown(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it on black."""
    upright = ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        return upright
    black = Image.new("RGBA", upright.size, "black")
    return Image.alpha_composite(black, upright.convert("RGBA"))


def _rgb(where: object, image: Image.Image) -> Image.Image:
    # 16-bit and float pixels have no unique conversion to 8 bits
    if image.mode.startswith(("I", "F")):
        raise BadRequest(f"{where}: has pixels of more than 8 bits; expected 8-bit colour or grey")
    return image.convert("RGB")
