"""What of a photograph a network sees: a random crop in training, the middle of it otherwise.

These are the transforms that ImageNet's published networks were trained and measured with, on Pillow images: their
fixed-point arithmetic gives the same bytes on every machine.

They are torchvision's to the byte, but not torchvision's code: to import it would double the seconds that each of the
processes takes that decode, and take 160 MB more in each.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: A test image is scaled to 256 pixels for a crop of 224.
SCALE: Final = 256 / 224

#: Share of the area that a random crop covers, and how wide it is of how high.
AREA: Final = (0.08, 1.0)
RATIO: Final = (3 / 4, 4 / 3)

#: Crops that are tried; where none lies inside the image, it is cropped in the middle.
TRIES: Final = 10

#: Numbers in [0, 1) that a training image needs: four per try, and one for the mirror.
DRAWS: Final = 4 * TRIES + 1

#: Left, top, right and bottom, in pixels.
Box = tuple[int, int, int, int]


def training_view(image: Image.Image, size: int, draws: Sequence[float], flip: bool) -> NDArray[np.uint8]:
    """A random crop, scaled to (S, S, 3), and mirrored half of the time if ``flip``; the last draw decides on that."""
    view = image.crop(random_box(image.width, image.height, draws)).resize((size, size), Image.Resampling.BILINEAR)
    if flip and draws[-1] < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view)


def central_view(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The middle (S, S, 3) of the image, whose shorter side is scaled to ``size * SCALE`` first."""
    shorter = min(image.size)
    target = round(size * SCALE)
    width, height = (int(target * side / shorter) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def random_box(width: int, height: int, draws: Sequence[float]) -> Box:
    """A part of an image: its area uniform in ``AREA``, the logarithm of its ratio in that of ``RATIO``.

    Args:
        width: of the image.
        height: of the image.
        draws: ``DRAWS`` numbers in [0, 1).
    """
    low, high = map(math.log, RATIO)
    for start in range(0, 4 * TRIES, 4):
        area, ratio, across, down = draws[start : start + 4]
        covered = width * height * (AREA[0] + (AREA[1] - AREA[0]) * area)
        shape = math.exp(low + (high - low) * ratio)
        wide, tall = round(math.sqrt(covered * shape)), round(math.sqrt(covered / shape))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int((width - wide + 1) * across), int((height - tall + 1) * down)
            return left, top, left + wide, top + tall
    return _middle(width, height)


def _middle(width: int, height: int) -> Box:
    """The largest part in the middle whose ratio is allowed."""
    wide, tall = width, height
    if width < RATIO[0] * height:
        tall = round(width / RATIO[0])
    elif width > RATIO[1] * height:
        wide = round(height * RATIO[1])
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall
