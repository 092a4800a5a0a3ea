"""Sampling of anchors and proposals by each image's own seed, in place of torch's global generator.

So a student samples the same alone, in any cohort, after a restart, and on any number of devices.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from kdtable import seeding


class SeededSampler:
    """torchvision's ``BalancedPositiveNegativeSampler``, with a generator for each image.

    Args:
        like: the sampler that it stands for.
        name: of the random stream.
    """

    def __init__(self, like: BalancedPositiveNegativeSampler, name: str) -> None:
        self.size, self.fraction, self._name = like.batch_size_per_image, like.positive_fraction, name
        self._seeds: Sequence[int] = ()

    def begin(self, draws: Tensor) -> None:
        """Set the seeds (B,) int64 of the next batch's images."""
        self._seeds = draws.tolist()

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (n,) uint8 of the sampled positive and negative boxes of each image; see torchvision."""
        found = [self._of_image(labels, seed) for labels, seed in zip(matched, self._seeds, strict=True)]
        return [positive for positive, _ in found], [negative for _, negative in found]

    def _of_image(self, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = seeding.generator(self._name, seed)
        positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
        positives = min(len(positive), int(self.size * self.fraction))
        return (
            _mask(labels, _some(positive, positives, generator)),
            _mask(labels, _some(negative, min(len(negative), self.size - positives), generator)),
        )


def _some(of: Tensor, count: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(of), generator=generator)[:count]
    return of[order.to(of.device)]


def _mask(like: Tensor, chosen: Tensor) -> Tensor:
    mask = torch.zeros_like(like, dtype=torch.uint8)
    mask[chosen] = 1
    return mask
