"""Detection sets: images of different sizes with boxes, in batches of one geometry.

An image's size and mirroring are functions of (seed, stage, epoch, index), drawn on the CPU. They are applied once, for
teacher and students alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdtable import seeding
from kdtable.data.detection.annotations import Annotated
from kdtable.data.spec import DataSpec
from kdtable.data.stream import PartName, slices
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.models.detection.batch import DetectionBatch, Size, together
from kdtable.recipes.recipe import Recipe

#: The longest side of a resized image, as a multiple of the side that the shorter one is resized to.
LONGEST: Final = 1333 / 800

#: Returns an image (3, H, W) of uint8 by its position.
Pixels = Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class DetectionPart:
    """The images of a part and their boxes."""

    pixels: Pixels
    boxes: Sequence[Annotated]

    def __len__(self) -> int:
        return len(self.boxes)


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
        train: the training images.
        test: the test images.
    """

    def __init__(self, spec: DataSpec, train: DetectionPart, test: DetectionPart) -> None:
        self.spec = spec
        self._parts: dict[PartName, DetectionPart] = {"train": train, "test": test}

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
        """All images of a part, as `kdtable.data.sets.ImageSet` gives them."""
        count = len(self._parts[part])
        positions = torch.arange(count) if order is None else torch.randperm(count, generator=order)
        for index in torch.split(positions, batch_size):
            views = [View(position, self.spec.image_size) for position in index.tolist()]
            yield _batch(self._parts[part], views, 0, ranks).to(device)


class DetectionStream:
    """The training images in random order, in batches.

    Args:
        part: the training images.
        spec: says their size, and whether they are mirrored.
        recipe: says the batch size.
        device: of the batches.
        ranks: the process group; each rank gets its shard of every batch.
    """

    #: Seconds that training waited for batches.
    waited = 0.0

    def __init__(self, part: DetectionPart, spec: DataSpec, recipe: Recipe, device: torch.device, ranks: Ranks) -> None:
        self._part, self._spec, self._device, self._ranks = part, spec, device, ranks
        self._slices = slices(len(part), recipe.batch_size, ranks.micro_batches)

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[DetectionBatch]:
        """The batches of a stage's epoch (from 1); they depend only on the arguments."""
        views = self._drawn(seed, stage, epoch)
        for part in self._slices:
            yield _batch(self._part, views[part], epoch, self._ranks).to(self._device)

    def _drawn(self, seed: int, stage: str, epoch: int) -> list[View]:
        """An epoch's images in order."""
        draw = seeding.generator("batches", seed, stage, epoch)
        count, side = len(self._part), self._spec.image_size
        order = torch.randperm(count, generator=draw).tolist()
        mirrored = (torch.randint(0, 2, (count,), generator=draw) * self._spec.flip).tolist()
        draws = torch.randint(2**62, (count,), generator=draw).tolist()
        return [View(index, side, bool(mirrored[index]), draws[index]) for index in order]


def _batch(part: DetectionPart, views: Sequence[View], epoch: int, ranks: Ranks) -> DetectionBatch:
    """A rank's shard of a batch. It is as large in pixels as the whole batch, whose other images are not decoded."""
    sizes = [resized(part.boxes[view.index].size, view.side) for view in views]
    shard = ranks.shard(len(views))
    shown = [_shown(part, view, size) for view, size in zip(views[shard], sizes[shard], strict=True)]
    return DetectionBatch(
        images=together([image for image, _ in shown], sizes),
        sizes=tuple(sizes[shard]),
        originals=tuple(part.boxes[view.index].size for view in views[shard]),
        boxes=tuple(boxes for _, boxes in shown),
        labels=tuple(torch.from_numpy(_taught(part.boxes[view.index])[1]) for view in views[shard]),
        index=torch.tensor([view.index for view in views[shard]]),
        epoch=epoch,
        draws=torch.tensor([view.draw for view in views[shard]]),
        of=None if ranks.size == 1 else len(views),
    )


def resized(size: Size, side: int) -> Size:
    """The size of an image whose shorter side becomes ``side``, or less where the longer one would be too long.

    Rounded down, as torchvision does.
    """
    short, long = min(size), max(size)
    scale = min(side / short, LONGEST * side / long)
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _shown(part: DetectionPart, view: View, size: Size) -> tuple[Tensor, Tensor]:
    """An image (3, h, w) float32 in [0, 1] of a size, and the boxes in it (n, 4)."""
    original = part.boxes[view.index]
    image = torch.from_numpy(part.pixels(view.index)).float().div_(255)
    if size != original.size:
        image = F.interpolate(image.unsqueeze(0), size=size, mode="bilinear", align_corners=False).squeeze(0)
    boxes = torch.from_numpy(_taught(original)[0])
    across, down = size[1] / original.size[1], size[0] / original.size[0]
    boxes = boxes * torch.tensor([across, down, across, down])
    if view.mirrored:
        image = image.flip(2)
        boxes = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], dim=1)
    return image, boxes


def _taught(boxes: Annotated) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes and labels without crowds."""
    return boxes.boxes[~boxes.crowds], boxes.labels[~boxes.crowds]


def load(spec: DataSpec) -> DetectionSet:
    """The set of a resolved spec.

    Raises:
        BadRequest: a file has changed since the spec was resolved.
    """
    from kdtable.data.detection import shapes

    parts = []
    for name, count in (("train", spec.train_count), ("test", spec.test_count)):
        images, boxes = shapes.read(name, count)
        parts.append(DetectionPart(images.__getitem__, boxes))
    return DetectionSet(spec, *parts)
