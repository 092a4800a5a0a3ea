"""RandAugment (Cubuk et al., NeurIPS 2020) on Pillow images, after crop and mirroring.

Operations and magnitudes are torchvision's (``transforms.RandAugment``: 14 operations, 31 magnitudes, the nearest
pixel, black where nothing is left); only the draws are ours, from the image's own random numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from PIL import Image

from kdtable import seeding
from kdtable.recipes.recipe import Recipe

#: Numbers from 0 to the strongest magnitude.
MAGNITUDES: Final = 31

Picture: TypeAlias = Image.Image
#: An operation with its strength; negative turns it round where it has a direction.
Operation: TypeAlias = Callable[[Picture, float], Picture]


@dataclass(frozen=True, slots=True)
class RandAugment:
    """Some operations, one after the other, each drawn from all.

    Attributes:
        operations: how many.
        magnitude: their strength, from 0 to 30.
    """

    operations: int
    magnitude: int

    @classmethod
    def of(cls, recipe: Recipe) -> "RandAugment | None":
        """The recipe's; ``None`` if it has none."""
        return cls(recipe.randaugment, recipe.randaugment_magnitude) if recipe.randaugment else None

    @property
    def draws(self) -> int:
        """How many random numbers an image takes: two for each operation."""
        return 2 * self.operations

    def __call__(self, image: Picture, draws: Sequence[float]) -> Picture:
        """Augment an image by ``draws``, random numbers in [0, 1)."""
        for which, sign in zip(draws[::2], draws[1::2], strict=True):
            image = applied(image, int(which * len(NAMES)), self.magnitude, negative=sign < 0.5)
        return image

    def drawn(self, seed: int, stage: str, epoch: int, count: int) -> torch.Tensor:
        """The draws (count, ``self.draws``) of a stage's epoch (from 1), in the order of its images."""
        generator = seeding.generator("randaugment", seed, stage, epoch)
        return torch.rand(count, self.draws, dtype=torch.float64, generator=generator)

    def batch(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augment images (B, H, W, 3) uint8, on any device, by draws (B, ``self.draws``); on the CPU."""
        pictures = (Image.fromarray(image) for image in images.cpu().numpy())
        augmented = [self(picture, drawn) for picture, drawn in zip(pictures, draws.tolist(), strict=True)]
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in augmented]))


def applied(image: Picture, number: int, magnitude: int, *, negative: bool) -> Picture:
    """An image after the operation of a number, at a magnitude from 0 to 30."""
    name = NAMES[number]
    strengths, signed = _strengths(*image.size)[name]
    strength = strengths[magnitude]
    return _operations()[name](image, -strength if signed and negative else strength)


@cache
def _strengths(width: int, height: int) -> dict[str, tuple[list[float], bool]]:
    """For each operation: its strength at each magnitude, and whether it may be turned round."""

    def line(start: float, end: float) -> list[float]:
        values: list[float] = torch.linspace(start, end, MAGNITUDES).tolist()
        return values

    shear, enhance = line(0.0, 0.3), line(0.0, 0.9)
    shift = 150.0 / 331.0
    return {
        "Identity": (line(0.0, 0.0), False),
        "ShearX": (shear, True),
        "ShearY": (shear, True),
        "TranslateX": (line(0.0, shift * width), True),
        "TranslateY": (line(0.0, shift * height), True),
        "Rotate": (line(0.0, 30.0), True),
        "Brightness": (enhance, True),
        "Color": (enhance, True),
        "Contrast": (enhance, True),
        "Sharpness": (enhance, True),
        "Posterize": ([8.0 - round(i / ((MAGNITUDES - 1) / 4)) for i in range(MAGNITUDES)], False),
        "Solarize": (line(255.0, 0.0), False),
        "AutoContrast": (line(0.0, 0.0), False),
        "Equalize": (line(0.0, 0.0), False),
    }


#: The operations, in torchvision's order.
NAMES: Final = tuple(_strengths(1, 1))


@cache
def _operations() -> dict[str, Operation]:
    # Imported here: processes that decode images without RandAugment start twice as fast without it.
    from torchvision.transforms import functional as F

    def affine(image: Picture, *, shear: Sequence[float] = (0.0, 0.0), shift: Sequence[int] = (0, 0), **at: Any) -> Any:
        return F.affine(image, angle=0.0, translate=list(shift), scale=1.0, shear=list(shear), **at)

    def degrees(strength: float) -> float:
        return math.degrees(math.atan(strength))

    return {
        "Identity": lambda image, _: image,
        "ShearX": lambda image, x: affine(image, shear=(degrees(x), 0.0), center=[0, 0]),
        "ShearY": lambda image, x: affine(image, shear=(0.0, degrees(x)), center=[0, 0]),
        "TranslateX": lambda image, x: affine(image, shift=(int(x), 0)),
        "TranslateY": lambda image, x: affine(image, shift=(0, int(x))),
        "Rotate": F.rotate,
        "Brightness": lambda image, x: F.adjust_brightness(image, 1.0 + x),
        "Color": lambda image, x: F.adjust_saturation(image, 1.0 + x),
        "Contrast": lambda image, x: F.adjust_contrast(image, 1.0 + x),
        "Sharpness": lambda image, x: F.adjust_sharpness(image, 1.0 + x),
        "Posterize": lambda image, x: F.posterize(image, int(x)),
        "Solarize": F.solarize,
        "AutoContrast": lambda image, _: F.autocontrast(image),
        "Equalize": lambda image, _: F.equalize(image),
    }
