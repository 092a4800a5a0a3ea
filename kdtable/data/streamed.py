"""Image sets that are too large for memory: decoded on demand in worker processes.

An image's view is a function of (seed, stage, epoch, index). The order is drawn as for sets in memory, and each image
has its own seed for crop, mirroring and RandAugment. Bytes are scaled to [0, 1] on the device; the network normalises
them.

Images that students are evaluated on after every epoch (the test images, or those held out for validation) are decoded
once and kept as bytes if they take no more than ``KEEP_BYTES`` and a quarter of the free memory.
"""

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from threading import Lock
from typing import Final

import psutil
import torch

from kdtable import seeding
from kdtable.data.decoding import Decoder, Key, Loader, default_workers, with_room
from kdtable.data.formats.image_folders import described
from kdtable.data.listing import Listing, Part
from kdtable.data.mixing import Mixing
from kdtable.data.randaugment import RandAugment
from kdtable.data.spec import DataSpec
from kdtable.data.stream import Batch, PartName, mixed, scaled, slices
from kdtable.data.validation import split
from kdtable.data.views import VIEWS, View, Views
from kdtable.data.weak_strong import both, strong_crops
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.hardware import available_cores
from kdtable.recipes.recipe import WEAK_STRONG, Recipe

#: Limit of kept images; ImageNet's 50,000 test images take 7 GiB.
KEEP_BYTES: Final = 8 * 2**30

#: Batch size when images are decoded to be kept.
_STEP: Final = 64


class StreamedSet:
    """A set of image folders, decoded on demand.

    Args:
        spec: the resolved set.
        listing: its images.
        workers: number of worker processes; 0 for none.
    """

    def __init__(self, spec: DataSpec, listing: Listing, workers: int) -> None:
        assert spec.path is not None  # `resolve` sets the path of such a set
        self.spec = spec
        self._parts = _parts(spec, listing)
        self._watched: PartName = "validation" if spec.validation else "test"
        self._workers = workers
        names = {name: part.names for name, part in self._parts.items()}
        self._decoder = Decoder(spec.path, names, spec.image_size, spec.flip)
        self._loaders: dict[bool, Loader] = {}
        self._kept: torch.Tensor | None = None
        self._there = torch.zeros(len(self._parts[self._watched]), dtype=torch.bool)
        self._keeping = Lock()

    @classmethod
    def of(cls, spec: DataSpec, workers: int | None = None) -> "StreamedSet":
        """The set of a resolved spec; by default with :func:`default_workers`.

        Raises:
            BadRequest: the folder has changed since the spec was resolved, or too many images of a class are held out.
        """
        return cls(spec, described(spec), default_workers(available_cores()) if workers is None else workers)

    @cached_property
    def train_labels(self) -> torch.Tensor:
        """(N,) int64."""
        return torch.from_numpy(self._parts["train"].labels)

    @cached_property
    def test_labels(self) -> torch.Tensor:
        """(N,) int64."""
        return torch.from_numpy(self._parts["test"].labels)

    def stream(self, recipe: Recipe, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> "StreamedBatches":
        """See `kdtable.data.sets.ImageSet`; the recipe's padding is not used."""
        size, spec, views = recipe.batch_size, self.spec, 1 + (recipe.views == WEAK_STRONG)
        further = RandAugment.of(recipe), Mixing.of(recipe, spec.num_classes, spec.image_size)
        kind = StreamedWeakStrong if views == 2 else StreamedBatches
        return kind(self._loader(device, views * size), self.train_labels, size, device, ranks, *further)

    def two_views(self, recipe: Recipe, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> "StreamedViews":
        """See `kdtable.data.sets.ImageSet`."""
        loader = self._loader(device, 2 * recipe.batch_size)
        return StreamedViews(loader, len(self.train_labels), recipe, device, ranks)

    def evaluation_batches(
        self,
        part: PartName,
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> Iterator[Batch]:
        """See `kdtable.data.sets.ImageSet`."""
        labels = torch.from_numpy(self._parts[part].labels)
        positions = torch.arange(len(labels)) if order is None else torch.randperm(len(labels), generator=order)
        whole = torch.split(positions, batch_size)
        shards = [_shard(index, ranks) for index in whole]
        kept = self._kept_images(torch.cat(shards), device) if part == self._watched else None
        if kept is not None:
            decoded: Iterator[torch.Tensor] = (kept[index] for index in shards)
        else:
            decoded = self._loader(device, batch_size).batches(_keys(part, shards))
        for index, shard, images in zip(whole, shards, decoded, strict=True):
            yield _batch(images, labels, shard, len(index), 0, device)

    def _kept_images(self, positions: torch.Tensor, device: torch.device) -> torch.Tensor | None:
        """A buffer of all watched images (N, S, S, 3) uint8, filled at ``positions``; ``None`` if it is too large.

        Images are decoded on the first request; others take no memory.
        """
        with self._keeping:
            if self._kept is None and self._can_keep():
                size = self.spec.image_size
                self._kept = torch.empty(len(self._there), size, size, 3, dtype=torch.uint8)
            if self._kept is not None and (lacking := positions[~self._there[positions]]).numel():
                parts = torch.split(lacking, _STEP)
                decoded = self._loader(device, _STEP).batches(_keys(self._watched, parts))
                for index, images in zip(parts, decoded, strict=True):
                    self._kept[index] = images
                self._there[lacking] = True
            return self._kept

    def _can_keep(self) -> bool:
        needed = 3 * len(self._there) * self.spec.image_size**2
        return needed <= min(KEEP_BYTES, psutil.virtual_memory().available // 4)

    def _loader(self, device: torch.device, batch_size: int) -> Loader:
        """The device's loader, created at the first request, with as many processes as its batches leave room for."""
        pin = device.type == "cuda"
        if pin not in self._loaders:
            workers = with_room(self._workers, 3 * batch_size * self.spec.image_size**2)
            self._loaders[pin] = Loader(self._decoder, workers, pin)
        return self._loaders[pin]


class StreamedBatches:
    """The training set in random order, cropped, scaled and mirrored at random; see also `kdtable.data.stream.Stream`.

    Where images are mixed, a rank decodes the image before its shard, too.

    Attributes:
        waited: total seconds that the caller waited for batches to be decoded.
    """

    def __init__(
        self,
        loader: Loader,
        labels: torch.Tensor,
        batch_size: int,
        device: torch.device,
        ranks: Ranks,
        augment: RandAugment | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        self.waited = 0.0
        self._ranks = ranks
        self._augment, self._mixing = augment, mixing
        self._loader = loader
        self._labels = labels
        self._slices = slices(len(labels), batch_size, ranks.micro_batches)
        self._device = device

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[Batch]:
        """The batches of a stage's epoch (from 1); they depend only on the arguments."""
        count = len(self._labels)
        order = torch.randperm(count, generator=seeding.generator("batches", seed, stage, epoch))
        seeds = torch.randint(2**63 - 1, (count,), generator=seeding.generator("crops", seed, stage, epoch))
        whole = [order[part] for part in self._slices]
        shards = [_shard(index, self._ranks) for index in whole]
        if self._mixing is not None:
            shards = [_with_last(index, self._ranks) for index in whole]
        batches = self._decoded(whole, shards, seeds, epoch)
        if self._mixing is None:
            yield from batches
        else:
            mixes = self._mixing.drawn(seed, stage, epoch, len(whole))
            yield from (mixed(batch, mix, self._mixing) for batch, mix in zip(batches, mixes, strict=True))

    def _decoded(
        self, whole: Sequence[torch.Tensor], shards: Sequence[torch.Tensor], seeds: torch.Tensor, epoch: int
    ) -> Iterator[Batch]:
        decoded = timed(self, self._loader.batches(_keys("train", shards, seeds, self._augment)))
        for index, shard, images in zip(whole, shards, decoded, strict=True):
            yield _batch(images, self._labels, shard, len(index), epoch, self._device)


class StreamedWeakStrong(StreamedBatches):
    """The training set in a weak and a strong view; see `kdtable.data.weak_strong`. Images are not mixed."""

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[Batch]:
        """See the base class."""
        count = len(self._labels)
        order = torch.randperm(count, generator=seeding.generator("batches", seed, stage, epoch))
        streams = seeding.generator("crops", seed, stage, epoch), strong_crops(seed, stage, epoch)
        weak, strong = (torch.randint(2**63 - 1, (count,), generator=stream) for stream in streams)
        whole = [order[part] for part in self._slices]
        shards = [_shard(index, self._ranks) for index in whole]
        pairs = zip(_keys("train", shards, weak), _keys("train", shards, strong, self._augment), strict=True)
        decoded = timed(self, self._loader.batches(first + second for first, second in pairs))
        for index, shard, images in zip(whole, shards, decoded, strict=True):
            first, second = images.chunk(2)
            batch = _batch(first, self._labels, shard, len(index), epoch, self._device)
            yield both(batch, scaled(copied(second, self._device).permute(0, 3, 1, 2)))


class StreamedViews:
    """The training set in random order, in two views, without labels; see `kdtable.data.views.TwoViews`.

    Here views are made of Pillow images, by torchvision's functions and Pillow's blur, as the released codes make them.

    Attributes:
        waited: total seconds that the caller waited for batches to be decoded.
    """

    def __init__(self, loader: Loader, count: int, recipe: Recipe, device: torch.device, ranks: Ranks) -> None:
        self.waited = 0.0
        self._loader, self._count, self._device, self._ranks = loader, count, device, ranks
        self._view, self._size = VIEWS[recipe.views], recipe.batch_size

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[Views]:
        """The batches of a stage's epoch (from 1); they depend only on the arguments."""
        order = torch.randperm(self._count, generator=seeding.generator("batches", seed, stage, epoch))
        drawn = [
            torch.randint(2**63 - 1, (self._count,), generator=seeding.generator("view", which, seed, stage, epoch))
            for which in (1, 2)
        ]
        whole = self._count // self._size
        shards = [_shard(index, self._ranks) for index in torch.split(order[: whole * self._size], self._size)]
        both = zip(*(_keys("train", shards, seeds, self._view) for seeds in drawn), strict=True)
        decoded = timed(self, self._loader.batches(first + second for first, second in both))
        for shard, images in zip(shards, decoded, strict=True):
            moved = scaled(copied(images, self._device).permute(0, 3, 1, 2))
            index, of = copied(shard, self._device), None if len(shard) == self._size else self._size
            first, second = moved.chunk(2)
            yield Views(first, torch.zeros_like(index), index, epoch, of=of, other=second)


def timed(stream: StreamedBatches | StreamedViews, decoded: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Decoded batches; what the caller waits for them is added to the stream's ``waited``."""
    while True:
        started = time.perf_counter()
        images = next(decoded, None)
        stream.waited += time.perf_counter() - started
        if images is None:
            return
        yield images


def _parts(spec: DataSpec, listing: Listing) -> dict[PartName, Part]:
    """The images by part, those that the spec holds out among them."""
    whole: dict[PartName, Part] = {"train": listing.train, "test": listing.test}
    if not spec.validation:
        return whole
    left, held = split(spec, torch.from_numpy(listing.train.labels))
    return {**whole, "train": listing.train.at(left.numpy()), "validation": listing.train.at(held.numpy())}


def _keys(
    part: PartName,
    batches: Sequence[torch.Tensor],
    seeds: torch.Tensor | None = None,
    augment: RandAugment | View | None = None,
) -> Iterator[list[Key]]:
    """The keys of each batch, made lazily: an epoch of ImageNet has more than a million."""
    for index in batches:
        drawn = [None] * len(index) if seeds is None else seeds[index].tolist()
        yield [(part, position, seed, augment) for position, seed in zip(index.tolist(), drawn, strict=True)]


def _shard(index: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """This rank's shard of a batch's positions, so that it does not decode the others."""
    return index[ranks.shard(len(index))]


def _with_last(index: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """This rank's shard after the position before it, with which its first image is mixed; the last is the first's."""
    shard = ranks.shard(len(index))
    return torch.cat([index[shard.start - 1].view(1), index[shard]])


def _batch(
    images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, whole: int, epoch: int, device: torch.device
) -> Batch:
    """A shard, on a device, of a batch of ``whole`` images; ``images`` are (B, S, S, 3) uint8."""
    moved = copied(images, device).permute(0, 3, 1, 2)
    of = whole if whole != len(index) else None
    return Batch(scaled(moved), copied(labels[index], device), copied(index, device), epoch, None, of)


def copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; a CUDA device receives it while the host goes on, which takes pinned memory."""
    pinned = tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor
    return pinned.to(device, non_blocking=device.type == "cuda")
