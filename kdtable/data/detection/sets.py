"""Detection sets: images of different sizes with boxes, in batches of one geometry.

An image's size and mirroring are functions of (seed, stage, epoch, index), drawn on the CPU. They are applied once, for
teacher and students alike.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdtable import seeding
from kdtable.data.detection.annotations import Annotated
from kdtable.data.spec import DataSpec
from kdtable.data.stream import PartName, scaled, slices
from kdtable.data.validation import split
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.errors import BadRequest
from kdtable.models.detection.batch import DetectionBatch, Size, together
from kdtable.recipes.recipe import Recipe

#: The longest side of a resized image, as a multiple of the side that the shorter one is resized to.
LONGEST: Final = 1333 / 800


class Pixels(Protocol):
    """The images of a part."""

    def batches(self, plan: Iterator[list[int]]) -> Iterator[list[Tensor]]:
        """The images (3, h, w) uint8 at the positions of each batch."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectionPart:
    """The images of a part and their boxes."""

    pixels: Pixels
    boxes: Sequence[Annotated]

    def __len__(self) -> int:
        return len(self.boxes)

    def at(self, positions: Sequence[int]) -> "DetectionPart":
        """The images at some positions."""
        return DetectionPart(_Some(self.pixels, positions), [self.boxes[position] for position in positions])


class _Some:
    """Some of the images of a part."""

    def __init__(self, of: Pixels, positions: Sequence[int]) -> None:
        self._of, self._positions = of, positions

    def batches(self, plan: Iterator[list[int]]) -> Iterator[list[Tensor]]:
        """See `Pixels`."""
        return self._of.batches([self._positions[place] for place in index] for index in plan)


@dataclass(frozen=True, slots=True)
class View:
    """How an image is shown: ``side`` is what its shorter side is resized to."""

    index: int
    side: int
    mirrored: bool = False
    draw: int = 0


class DetectionSet:
    """A set of images with boxes; see `kdtable.data.sets.ImageSet`.

    Args:
        spec: the resolved set.
        train: the training images, those that the spec holds out for validation among them.
        test: the test images.
    """

    def __init__(self, spec: DataSpec, train: DetectionPart, test: DetectionPart) -> None:
        self.spec = spec
        self._parts: dict[PartName, DetectionPart] = {"train": train, "test": test}
        if spec.validation:
            left, held = split(spec, torch.zeros(len(train), dtype=torch.int64))
            self._parts |= {"train": train.at(left.tolist()), "validation": train.at(held.tolist())}

    @property
    def train_labels(self) -> Tensor:
        """(N,) int64, all 0: an image has no label of its own."""
        return torch.zeros(len(self._parts["train"]), dtype=torch.int64)

    def boxes(self, part: PartName) -> Sequence[Annotated]:
        """The boxes of a part's images."""
        return self._parts[part].boxes

    def stream(self, recipe: Recipe, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> "DetectionStream":
        """The training images, resized and mirrored: this rank's shards of the batches, on ``device``."""
        return DetectionStream(self._parts["train"], self.spec, recipe, device, ranks)

    def evaluation_batches(
        self,
        part: PartName,
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> Iterator[DetectionBatch]:
        """All images of a part, as `kdtable.data.sets.ImageSet` gives them.

        A rank gets no batch for a last one that has no image left for it.
        """
        count, side = len(self._parts[part]), self.spec.image_size
        positions = torch.arange(count) if order is None else torch.randperm(count, generator=order)
        batches = [[View(place, side) for place in index.tolist()] for index in torch.split(positions, batch_size)]
        seen = [views for views in batches if views[ranks.shard(len(views))]]
        return _batches(self._parts[part], seen, 0, device, ranks)


class DetectionStream:
    """The training images in random order, in batches.

    Args:
        part: the training images.
        spec: says their size, and whether they are mirrored.
        recipe: says the batch size, and the sizes that images are drawn from.
        device: of the batches.
        ranks: the process group; each rank gets its shard of every batch.

    Attributes:
        waited: total seconds that it took to read and to resize images.
    """

    def __init__(self, part: DetectionPart, spec: DataSpec, recipe: Recipe, device: torch.device, ranks: Ranks) -> None:
        self.waited = 0.0
        self._part, self._device, self._ranks = part, device, ranks
        self._flip, self._sides = spec.flip, recipe.sides or (spec.image_size,)
        self._slices = slices(len(part), recipe.batch_size, ranks.micro_batches)

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[DetectionBatch]:
        """The batches of a stage's epoch (from 1); they depend only on the arguments."""
        views = self._drawn(seed, stage, epoch)
        batches = [views[part] for part in self._slices]
        return self._timed(_batches(self._part, batches, epoch, self._device, self._ranks))

    def _timed(self, batches: Iterator[DetectionBatch]) -> Iterator[DetectionBatch]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _drawn(self, seed: int, stage: str, epoch: int) -> list[View]:
        """An epoch's images in order."""
        draw = seeding.generator("batches", seed, stage, epoch)
        count = len(self._part)
        order = torch.randperm(count, generator=draw).tolist()
        mirrored = (torch.randint(0, 2, (count,), generator=draw) * self._flip).tolist()
        draws = torch.randint(2**62, (count,), generator=draw).tolist()
        sides = torch.randint(len(self._sides), (count,), generator=draw).tolist()
        return [View(index, self._sides[sides[index]], bool(mirrored[index]), draws[index]) for index in order]


def _batches(
    part: DetectionPart, batches: Sequence[Sequence[View]], epoch: int, device: torch.device, ranks: Ranks
) -> Iterator[DetectionBatch]:
    """This rank's shards of batches; the images of others are not decoded."""
    plan = ([view.index for view in views[ranks.shard(len(views))]] for views in batches)
    for views, images in zip(batches, part.pixels.batches(plan), strict=True):
        yield _batch(part.boxes, views, images, epoch, device, ranks)


def _batch(
    known: Sequence[Annotated],
    views: Sequence[View],
    images: Sequence[Tensor],
    epoch: int,
    device: torch.device,
    ranks: Ranks,
) -> DetectionBatch:
    """A rank's shard of a batch, as large in pixels as the whole batch."""
    sizes = [resized(known[view.index].size, view.side) for view in views]
    shard = ranks.shard(len(views))
    own = list(zip([known[view.index] for view in views[shard]], views[shard], sizes[shard], strict=True))
    shown = [_image(image.to(device), view, size) for image, (_, view, size) in zip(images, own, strict=True)]
    return DetectionBatch(
        images=together(shown, sizes),
        sizes=tuple(sizes[shard]),
        originals=tuple(one.size for one, _, _ in own),
        boxes=tuple(_boxes(one, view, size).to(device) for one, view, size in own),
        labels=tuple(torch.from_numpy(one.labels[~one.crowds]).to(device) for one, _, _ in own),
        index=torch.tensor([view.index for view in views[shard]], device=device),
        epoch=epoch,
        draws=torch.tensor([view.draw for view in views[shard]]),
        of=None if ranks.size == 1 else len(views),
    )


def longest(side: int) -> int:
    """The longest side of an image whose shorter side would become ``side``."""
    return round(LONGEST * side)


def resized(size: Size, side: int) -> Size:
    """The size of an image whose shorter side becomes ``side``, or less where the longer one would be too long.

    Rounded down, as torchvision does.
    """
    scale = min(side / min(size), longest(side) / max(size))
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _image(image: Tensor, view: View, size: Size) -> Tensor:
    """An image (3, h, w) of uint8 as float32 in [0, 1], of a size."""
    found = scaled(image)
    if size != tuple(image.shape[1:]):
        found = F.interpolate(found.unsqueeze(0), size=size, mode="bilinear", align_corners=False).squeeze(0)
    return found.flip(2) if view.mirrored else found


def _boxes(original: Annotated, view: View, size: Size) -> Tensor:
    """The boxes (n, 4) of the image in that size, without crowds."""
    boxes = torch.from_numpy(original.boxes[~original.crowds])
    across, down = size[1] / original.size[1], size[0] / original.size[0]
    boxes = boxes * torch.tensor([across, down, across, down])
    if view.mirrored:
        boxes = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], dim=1)
    return boxes


class InMemory:
    """Images (3, h, w) uint8 in memory; see `Pixels`."""

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self._images = images

    def batches(self, plan: Iterator[list[int]]) -> Iterator[list[Tensor]]:
        """See the protocol."""
        return ([torch.from_numpy(self._images[position]) for position in index] for index in plan)


def load(spec: DataSpec) -> DetectionSet:
    """The set of a resolved spec.

    Raises:
        BadRequest: a file has changed since the spec was resolved.
    """
    if spec.path is not None:
        return _in_folder(spec, spec.path)
    from kdtable.data.detection import shapes

    parts = []
    for name, count in (("train", spec.train_count + spec.validation), ("test", spec.test_count)):
        images, boxes = shapes.read(name, count)
        parts.append(DetectionPart(InMemory(images), boxes))
    return DetectionSet(spec, *parts)


def _in_folder(spec: DataSpec, path: Path) -> DetectionSet:
    from kdtable.data.detection.files import ImageFiles
    from kdtable.data.detection.folders import read

    found = read(spec.kind, path, skip=spec.mended)
    if found.sha256 != spec.sha256:
        raise BadRequest(f"{path}: has changed while it was in use; start again")
    train, test = found.boxes["train"], found.boxes["test"]
    return DetectionSet(
        spec,
        DetectionPart(ImageFiles(path, found.train, [one.size for one in train]), train),
        DetectionPart(ImageFiles(path, found.test, [one.size for one in test]), test),
    )
