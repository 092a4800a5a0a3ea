"""Crops for ImageNet-size images: random in training, central in tests.

These are the transforms that published ImageNet networks were trained and tested with. They work on Pillow images,
whose fixed-point arithmetic gives the same bytes on every machine.

Results equal torchvision's to the byte. torchvision is not imported, since it would double the start-up time of each
worker process and take 160 MB more in each.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: The shorter side of a test image is scaled to 256 pixels for a crop of 224.
SCALE: Final = 256 / 224

#: Ranges of a random crop: its fraction of the image's area, and its width divided by its height.
AREA: Final = (0.08, 1.0)
RATIO: Final = (3 / 4, 4 / 3)

#: Number of random crops that are tried; if none fits, the image is cropped in the middle.
TRIES: Final = 10

#: Random numbers in [0, 1) per training image: four per try, and one for mirroring.
DRAWS: Final = 4 * TRIES + 1

#: Left, top, right and bottom, in pixels.
Box = tuple[int, int, int, int]


def training_view(
    image: Image.Image, size: int, draws: Sequence[float], flip: bool, least: float = AREA[0]
) -> NDArray[np.uint8]:
    """A random crop, scaled to (S, S, 3); if ``flip``, mirrored half of the time, as the last draw decides."""
    view = image.crop(random_box(image.width, image.height, draws, least)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    if flip and draws[-1] < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view)


def central_view(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The centre (S, S, 3) of the image, after scaling its shorter side to ``size * SCALE``."""
    shorter = min(image.size)
    target = round(size * SCALE)
    width, height = (int(target * side / shorter) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The centre (S, S) of the image, after scaling its shorter side to ``size``."""
    shorter = min(image.size)
    width, height = (max(size, round(size * side / shorter)) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


def random_box(width: int, height: int, draws: Sequence[float], least: float = AREA[0]) -> Box:
    """A random crop: area uniform in ``AREA``, logarithm of the aspect ratio uniform in that of ``RATIO``.

    Args:
        width: of the image.
        height: of the image.
        draws: ``DRAWS`` random numbers in [0, 1).
        least: in place of the smallest area of ``AREA``.
    """
    low, high = map(math.log, RATIO)
    for start in range(0, 4 * TRIES, 4):
        area, ratio, across, down = draws[start : start + 4]
        covered = width * height * (least + (AREA[1] - least) * area)
        shape = math.exp(low + (high - low) * ratio)
        wide, tall = round(math.sqrt(covered * shape)), round(math.sqrt(covered / shape))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int((width - wide + 1) * across), int((height - tall + 1) * down)
            return left, top, left + wide, top + tall
    return _middle(width, height)


def _middle(width: int, height: int) -> Box:
    """The largest central crop with an allowed aspect ratio."""
    wide, tall = width, height
    if width < RATIO[0] * height:
        tall = round(width / RATIO[0])
    elif width > RATIO[1] * height:
        wide = round(height * RATIO[1])
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall
