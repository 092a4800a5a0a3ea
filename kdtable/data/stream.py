"""Batches of augmented training images, and of test images.

The whole set is kept on the device as padded bytes, (N, H, W, 3). A batch is one gather of pixels by flat index: the
first index determines the crop, the order of the columns the mirroring. Batches are therefore channels-last in memory:
(B, 3, H, W) with the strides of (B, H, W, 3). Convolutions on the CPU are fastest in that layout; a copy into another
layout would cost 15 % of the stream's speed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from kdtable import seeding
from kdtable.data.mixing import Mix, Mixing
from kdtable.data.randaugment import RandAugment
from kdtable.distributed import SINGLE_PROCESS, Ranks

#: The training images, those of them that are held out, or the test images.
PartName = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch of images, or a shard of one.

    Example:
        for batch in images.stream(recipe, device).epoch(seed=0, stage="main", epoch=1):
            logits = student(batch.images).logits

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1], channels-last in memory.
        labels: (B,) int64; of mixed images (`kdtable.data.mixing`) (B, C) float32, the weight of each class.
        index: (B,) int64, positions in the set; a mixed image keeps its own.
        epoch: from 1; 0 outside training.
        view: (B,) int64, each image's crop and mirroring as a number below :func:`count_views`; ``None`` outside
            training, and if views are not countable (mixed images, RandAugment).
        of: size of the whole batch that this is a shard of; ``None`` for a whole batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    epoch: int
    view: torch.Tensor | None = None
    of: int | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def whole(self) -> int:
        """Number of images in the whole batch."""
        return len(self) if self.of is None else self.of

    def shard(self, ranks: Ranks) -> "Batch":
        """A rank's shard; the batch itself if there is one rank."""
        return self if ranks.size == 1 else self.part(ranks.shard(len(self)))

    def part(self, rows: slice | torch.Tensor) -> "Batch":
        """A shard with some of the images, selected by a slice or by positions (n,) int64."""
        view = None if self.view is None else self.view[rows]
        return Batch(self.images[rows], self.labels[rows], self.index[rows], self.epoch, view, self.whole)


def count_views(pad: int, flip: bool) -> int:
    """Number of different views (crop and mirroring) that :class:`Stream` makes of one image."""
    return (2 * pad + 1) ** 2 * (1 + flip)


class Stream:
    """The training set in random order, cropped and mirrored at random.

    An image is padded with ``pad`` pixels on each side (black, or mirrored at the edges), cropped back to its size at
    a uniformly drawn position, and mirrored left to right with probability 1/2 if ``flip``. Then come RandAugment's
    operations, on the CPU, and whole batches are mixed. A last batch of one image joins the batch before it, since one
    image has no batch statistics.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        batch_size: images per batch; the last batch may be shorter.
        pad: pixels added on each side.
        fill: "zero" or "reflect"; for the latter ``pad`` is smaller than the image.
        flip: whether to mirror.
        device: where the set is kept and batches are made.
        ranks: the process group; each rank gets its shard of every batch.
        augment: further operations on each image.
        mixing: how the images of a batch are mixed with each other.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        batch_size: int,
        pad: int = 4,
        fill: str = "zero",
        flip: bool = True,
        device: torch.device | str = "cpu",
        ranks: Ranks = SINGLE_PROCESS,
        augment: RandAugment | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        self._ranks = ranks
        self._augment, self._mixing = augment, mixing
        count, channels, height, width = images.shape
        padded = _padded(images.permute(0, 2, 3, 1).to(device), pad, fill)
        self._padded_shape = padded.shape[1:3]
        self._pixels = padded.view(-1, channels)
        self._shape = (height, width, channels)
        self._labels = labels.to(device)
        self._slices = slices(count, batch_size, ranks.micro_batches)
        self._pad = pad
        self._flip = flip
        # (2, H * W): from a crop's first pixel to each of its pixels, in order and mirrored
        rows = torch.arange(height).unsqueeze(1) * (width + 2 * pad)
        columns = torch.arange(width)
        self._offsets = torch.stack([(rows + columns).flatten(), (rows + columns.flip(0)).flatten()]).to(device)

    @property
    def waited(self) -> float:
        """Seconds that training waited for batches: 0, since they are made on the device."""
        return 0.0

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[Batch]:
        """The batches of a stage's epoch (from 1); they depend only on the arguments, not on the device."""
        batches = self._whole(seed, stage, epoch)
        if self._mixing is not None:
            mixes = self._mixing.drawn(seed, stage, epoch, len(self._slices))
            batches = (mixed(after_last(batch), mix, self._mixing) for batch, mix in zip(batches, mixes, strict=True))
        for batch in batches:
            yield batch.shard(self._ranks)

    def _whole(self, seed: int, stage: str, epoch: int) -> Iterator[Batch]:
        """Whole batches, before images are mixed."""
        device = self._pixels.device
        order, corners, mirrored, views = (draw.to(device) for draw in self._draw(seed, stage, epoch))
        augment = self._augment
        operations = None if augment is None else augment.drawn(seed, stage, epoch, len(order))
        for part in self._slices:
            index = order[part]
            images = self._cropped(corners[part], mirrored[part])
            if augment is not None and operations is not None:
                images = augment.batch(images, operations[part]).to(device)
            view = views[part] if augment is None else None
            yield Batch(scaled(images.permute(0, 3, 1, 2)), self._labels[index], index, epoch, view)

    def _cropped(self, corners: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Bytes (B, H, W, C) of crops that begin at ``corners``, positions in all padded pixels; 1 is ``mirrored``."""
        pixels = corners.unsqueeze(1) + self._offsets[mirrored]
        return self._pixels.index_select(0, pixels.view(-1)).view(-1, *self._shape)

    def _corners(self, index: torch.Tensor, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """(B,) positions of the first pixels of crops at rows ``top`` and columns ``left`` of the images ``index``."""
        height, width = self._padded_shape
        return (index * height + top) * width + left

    def _draw(self, seed: int, stage: str, epoch: int) -> tuple[torch.Tensor, ...]:
        """An epoch's order of images, first pixels of the crops, 1 if mirrored (else 0), and views; all (N,)."""
        generator = seeding.generator("batches", seed, stage, epoch)
        order = torch.randperm(len(self._labels), generator=generator)
        top, left, mirrored = self._crops(generator)
        view = (top * (2 * self._pad + 1) + left) * (1 + self._flip) + mirrored
        return order, self._corners(order, top, left), mirrored, view

    def _crops(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Top and left of a crop of each image of an epoch, and 1 if it is mirrored (else 0); all (N,)."""
        count = len(self._labels)
        top, left = torch.randint(0, 2 * self._pad + 1, (2, count), generator=generator)
        return top, left, torch.randint(0, 2, (count,), generator=generator) * self._flip


def after_last(batch: Batch) -> Batch:
    """A whole batch with its last image before its first, for :func:`mixed`."""
    images, labels, index = (torch.cat([part[-1:], part]) for part in (batch.images, batch.labels, batch.index))
    return Batch(images, labels, index, batch.epoch, of=len(batch))


def mixed(batch: Batch, mix: Mix, mixing: Mixing) -> Batch:
    """A batch or shard whose images are each mixed with the one before; the first image is left out."""
    images, labels = mix.images(batch.images), mix.labels(batch.labels, mixing.num_classes)
    of = None if batch.whole == len(labels) else batch.whole
    return Batch(images, labels, batch.index[1:], batch.epoch, None, of)


def _padded(images: torch.Tensor, pad: int, fill: str) -> torch.Tensor:
    """Pad images (N, H, W, C) with ``pad`` pixels on each side; contiguous."""
    count, height, width, channels = images.shape
    if fill == "reflect":
        rows, columns = (_reflected(size, pad).to(images.device) for size in (height, width))
        return images[:, rows.unsqueeze(1), columns]
    padded = images.new_zeros(count, height + 2 * pad, width + 2 * pad, channels)
    padded[:, pad : pad + height, pad : pad + width] = images
    return padded


def _reflected(size: int, pad: int) -> torch.Tensor:
    """Positions in an image, (size + 2 pad,), reflected at its first and last pixel."""
    positions = torch.arange(-pad, size + pad).abs()
    return torch.where(positions < size, positions, 2 * (size - 1) - positions)


def evaluation_batches(
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    device: torch.device | str = "cpu",
    order: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Batches of all images without augmentation, on ``device``; epoch is 0.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        batch_size: images per batch; the last may be shorter, even a single one.
        device: of the batches.
        order: draws a random order; without it images keep theirs.
    """
    positions = None if order is None else torch.randperm(len(images), generator=order)
    for start in range(0, len(images), batch_size):
        part = slice(start, min(start + batch_size, len(images)))
        index = torch.arange(part.start, part.stop) if positions is None else positions[part]
        chosen, named = (images[part], labels[part]) if positions is None else (images[index], labels[index])
        chosen = chosen.to(device).contiguous(memory_format=torch.channels_last)
        yield Batch(scaled(chosen), named.to(device), index.to(device), 0)


def slices(count: int, batch_size: int, micro_batches: int = 1) -> list[slice]:
    """Slices of an epoch, one per batch.

    A last batch with fewer than two images per micro-batch joins the one before: one image has no batch statistics.
    """
    starts = list(range(0, count, batch_size))
    if 0 < count % batch_size < 2 * micro_batches and count > batch_size:
        starts.pop()
    return [slice(start, stop) for start, stop in pairwise([*starts, count])]


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Convert bytes to float32 in [0, 1], correctly rounded, in the same memory layout."""
    # CUDA multiplies by the reciprocal of a Python number, and divides only by a tensor.
    return images.float().div_(torch.full((), 255.0, device=images.device))
