"""Two views of each training image, with its label: a weak one and a strong one, as MLKD and its successors see them.

The weak view is the crop and mirroring that a run with one view has, to the bit. The strong one is another crop and
mirroring of the image, and RandAugment (`kdtable.data.randaugment`) after that. Its crops and its operations have
random streams of their own, so that a batch is a function of (seed, stage, epoch, position).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdtable import seeding
from kdtable.data.randaugment import RandAugment
from kdtable.data.stream import Batch, Stream, scaled


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WeakAndStrong(Batch):
    """A batch of two views of each image; ``images`` are the weak ones.

    Attributes:
        strong: (B, 3, H, W), the strong views.
    """

    strong: Tensor

    def part(self, rows: slice | Tensor) -> "WeakAndStrong":
        """See the base class."""
        kept = {name: getattr(self, name)[rows] for name in ("images", "labels", "index", "strong")}
        return replace(self, view=None, of=self.whole, **kept)


class WeakStrong(Stream):
    """The training set in random order, in a weak and a strong view; arguments as of the base class.

    ``augment`` makes the strong views; without it they are second crops.
    """

    def __init__(self, *data: Tensor, augment: RandAugment | None = None, **others: Any) -> None:
        super().__init__(*data, **others)
        self._strong = augment

    def _whole(self, seed: int, stage: str, epoch: int) -> Iterator[Batch]:
        crops = self._crops(strong_crops(seed, stage, epoch))
        device, augment = self._pixels.device, self._strong
        operations = None if augment is None else augment.drawn(seed, stage, epoch, len(self._labels))
        for part, batch in zip(self._slices, super()._whole(seed, stage, epoch), strict=True):
            top, left, mirrored = (draws[part].to(device) for draws in crops)
            images = self._cropped(self._corners(batch.index, top, left), mirrored)
            if augment is not None and operations is not None:
                images = augment.batch(images, operations[part]).to(device)
            yield both(batch, scaled(images.permute(0, 3, 1, 2)))


def strong_crops(seed: int, stage: str, epoch: int) -> torch.Generator:
    """The random stream of the strong views' crops of a stage's epoch (from 1)."""
    return seeding.generator("strong crops", seed, stage, epoch)


def both(weak: Batch, strong: Tensor) -> WeakAndStrong:
    """A batch of weak views with the strong views (B, 3, H, W) of its images."""
    return WeakAndStrong(weak.images, weak.labels, weak.index, weak.epoch, of=weak.of, strong=strong)
