"""Batches of images of different sizes with boxes, in one geometry for teacher and students."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kdtable.distributed import Ranks

#: Heights and widths of batches are multiples of this number of pixels, as in torchvision.
STRIDE: Final = 32

#: Height and width in pixels.
Size = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class DetectionBatch:
    """Images, already resized and mirrored, with their boxes; or a shard of them.

    Every network normalises these pixels and resizes nothing, so that boxes mean the same to teacher and students.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1]; each image is in the upper left corner, and the rest is 0.
        sizes: of each image in ``images``, without what is filled up.
        originals: of each image before it was resized.
        boxes: of each image (n, 4) float32: left, top, right, bottom, in pixels of ``images``. Crowds are left out.
        labels: of each image (n,) int64, from 0 to the number of classes - 1.
        index: (B,) int64, positions in the part of the set.
        epoch: from 1; 0 outside training.
        draws: (B,) int64, each image's seed of the anchors and proposals that are sampled.
        of: size of the whole batch that this is a shard of; ``None`` for a whole batch.
    """

    images: Tensor
    sizes: tuple[Size, ...]
    originals: tuple[Size, ...]
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    index: Tensor
    epoch: int
    draws: Tensor
    of: int | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    @property
    def whole(self) -> int:
        """Number of images in the whole batch."""
        return len(self) if self.of is None else self.of

    def part(self, rows: slice) -> "DetectionBatch":
        """A shard with some of the images; it is as large in pixels as the batch."""
        return DetectionBatch(
            self.images[rows],
            self.sizes[rows],
            self.originals[rows],
            self.boxes[rows],
            self.labels[rows],
            self.index[rows],
            self.epoch,
            self.draws[rows],
            self.whole,
        )

    def shard(self, ranks: Ranks) -> "DetectionBatch":
        """A rank's shard; the batch itself if there is one rank."""
        return self if ranks.size == 1 else self.part(ranks.shard(len(self)))

    def outside(self) -> Tensor | None:
        """(B, 1, H, W) bool, where no image is; ``None`` if there is no such pixel."""
        height, width = self.images.shape[-2:]
        if all(size == (height, width) for size in self.sizes):
            return None
        rows, columns = torch.arange(height), torch.arange(width)
        masks = [(rows >= h).unsqueeze(1) | (columns >= w).unsqueeze(0) for h, w in self.sizes]
        return torch.stack(masks).unsqueeze(1).to(self.images.device)


def together(images: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
    """Images (3, h, w) float32 as one batch (B, 3, H, W) with room for images of all ``sizes``, filled up with 0."""
    height, width = (-(-max(size[axis] for size in sizes) // STRIDE) * STRIDE for axis in (0, 1))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch.contiguous(memory_format=torch.channels_last)
