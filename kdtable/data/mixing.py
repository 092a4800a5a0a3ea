"""Mixed training images: MixUp (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019).

Computed as by torchvision's ``transforms.v2``, which mix image i of a batch with image i - 1 (the first with the last)
by one share for the whole batch. Only the draws are ours: from a generator of the run's seed, the stage and the epoch.
Labels become (B, C) probabilities. Every rank mixes as one process would.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtable import seeding
from kdtable.recipes.recipe import Recipe

#: Top, bottom, left and right of a box in pixels; the ends are outside.
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Mix:
    """How the images of one batch are mixed.

    Attributes:
        share: weight of an image's own label, in [0, 1].
        box: what the other image covers (CutMix); ``None`` to blend all pixels (MixUp).
    """

    share: float
    box: Box | None = None

    def images(self, images: Tensor) -> Tensor:
        """Mix floats (1 + B, 3, H, W), each image with the one before it, to (B, 3, H, W) of the same layout."""
        own, other = images[1:], images[:-1]
        if self.box is None:
            return other.mul(1.0 - self.share).add_(own.mul(self.share))
        top, bottom, left, right = self.box
        mixed = own.clone()
        mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return mixed

    def labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """Mix labels (1 + B,) int64 as :meth:`images`, to probabilities (B, C) float32."""
        known = F.one_hot(labels, num_classes).float()
        return known[:-1].mul(1.0 - self.share).add_(known[1:].mul(self.share))


@dataclass(frozen=True, slots=True)
class Mixing:
    """Which mixes are drawn for the batches of an epoch.

    Attributes:
        mixup: alpha of MixUp; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        num_classes: of the data set.
        size: height and width of the images.
    """

    mixup: float
    cutmix: float
    num_classes: int
    size: int

    @classmethod
    def of(cls, recipe: Recipe, num_classes: int, size: int) -> "Mixing | None":
        """The recipe's; ``None`` if it mixes no images."""
        return cls(recipe.mixup, recipe.cutmix, num_classes, size) if recipe.mixes else None

    def drawn(self, seed: int, stage: str, epoch: int, batches: int) -> Iterator[Mix]:
        """The mix of each batch of a stage's epoch (from 1)."""
        generator = seeding.generator("mixing", seed, stage, epoch)
        for draws in torch.rand(batches, 4, dtype=torch.float64, generator=generator).tolist():
            yield self._mix(*draws)

    def _mix(self, choice: float, quantile: float, across: float, down: float) -> Mix:
        """The mix of four numbers that are uniform in [0, 1)."""
        from scipy.special import betaincinv

        blends = choice < 0.5 if self.mixup and self.cutmix else self.mixup > 0
        alpha = self.mixup if blends else self.cutmix
        share = float(betaincinv(alpha, alpha, quantile))
        return Mix(share) if blends else self._cut(share, across, down)

    def _cut(self, share: float, across: float, down: float) -> Mix:
        """CutMix with a box of (1 - share) of the area before it is clipped at the image's edges."""
        half = int(0.5 * math.sqrt(1.0 - share) * self.size)
        (top, bottom), (left, right) = (
            (max(centre - half, 0), min(centre + half, self.size))
            for centre in (int(down * self.size), int(across * self.size))
        )
        return Mix(1.0 - (right - left) * (bottom - top) / self.size**2, (top, bottom, left, right))
