"""Image sets that are too large for the memory: decoded whenever they are needed, in processes of their own.

What an epoch shows of an image is a function of (seed, stage, epoch, index): the order comes from the same draw as that
of sets in memory, and each image has a seed of its own for its crop and its mirroring. The bytes that come out are
scaled to [0, 1] on the device; to normalise them is the network's part.

Test images are decoded once and kept as bytes, where they take no more than ``KEEP_BYTES`` and a quarter of the free
memory: students of a cohort are measured one by one, after every epoch.
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
from kdtable.data.protocols import PartName
from kdtable.data.spec import DataSpec
from kdtable.data.stream import Batch, scaled, slices
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.hardware import available_cores
from kdtable.recipes.recipe import Recipe

#: ImageNet's 50,000 test images take 7 GiB.
KEEP_BYTES: Final = 8 * 2**30

#: Images that are decoded at a time when the test images are decoded to be kept.
_STEP: Final = 64


class StreamedSet:
    """A set of photographs in a folder.

    Args:
        spec: as it was resolved.
        listing: its images.
        workers: processes that decode; 0 for none.
    """

    def __init__(self, spec: DataSpec, listing: Listing, workers: int) -> None:
        assert spec.path is not None  # `resolve` gives every such set its path
        self.spec = spec
        self._parts: dict[PartName, Part] = {"train": listing.train, "test": listing.test}
        self._workers = workers
        self._decoder = Decoder(spec.path, listing.train.names, listing.test.names, spec.image_size, spec.flip)
        self._loaders: dict[bool, Loader] = {}
        self._kept: torch.Tensor | None = None
        self._there = torch.zeros(len(listing.test), dtype=torch.bool)
        self._keeping = Lock()

    @classmethod
    def of(cls, spec: DataSpec, workers: int | None = None) -> "StreamedSet":
        """The set of a spec; by default with as many processes as suit this one's cores.

        Raises:
            BadRequest: the folder has changed since it was resolved.
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
        """See `kdtable.data.protocols.Images`; the recipe's padding is not used."""
        return StreamedBatches(
            self._loader(device, recipe.batch_size), self.train_labels, recipe.batch_size, device, ranks
        )

    def evaluation_batches(
        self,
        part: PartName,
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> Iterator[Batch]:
        """See `kdtable.data.protocols.Images`."""
        labels = self.train_labels if part == "train" else self.test_labels
        places = torch.arange(len(labels)) if order is None else torch.randperm(len(labels), generator=order)
        whole = torch.split(places, batch_size)
        shares = [_share(index, ranks) for index in whole]
        kept = self._kept_test_images(torch.cat(shares), device) if part == "test" else None
        if kept is not None:
            decoded: Iterator[torch.Tensor] = (kept[index] for index in shares)
        else:
            decoded = self._loader(device, batch_size).batches(_keys(part, shares))
        for index, share, images in zip(whole, shares, decoded, strict=True):
            yield _batch(images, labels, share, len(index), 0, device)

    def _kept_test_images(self, places: torch.Tensor, device: torch.device) -> torch.Tensor | None:
        """All test images (N, S, S, 3) uint8, of which those at ``places`` are there; ``None`` if they are too large.

        They are decoded by the first who asks for them. What nobody asked for takes no memory.
        """
        with self._keeping:
            if self._kept is None and self._can_keep():
                size, count = self.spec.image_size, self.spec.test_count
                self._kept = torch.empty(count, size, size, 3, dtype=torch.uint8)
            if self._kept is not None and (lacking := places[~self._there[places]]).numel():
                parts = torch.split(lacking, _STEP)
                decoded = self._loader(device, _STEP).batches(_keys("test", parts))
                for index, images in zip(parts, decoded, strict=True):
                    self._kept[index] = images
                self._there[lacking] = True
            return self._kept

    def _can_keep(self) -> bool:
        needed = 3 * self.spec.test_count * self.spec.image_size**2
        return needed <= min(KEEP_BYTES, psutil.virtual_memory().available // 4)

    def _loader(self, device: torch.device, batch_size: int) -> Loader:
        """The same for all that is asked of a device; as many processes as have room for the first batches."""
        pin = device.type == "cuda"
        if pin not in self._loaders:
            workers = with_room(self._workers, 3 * batch_size * self.spec.image_size**2)
            self._loaders[pin] = Loader(self._decoder, workers, pin)
        return self._loaders[pin]


class StreamedBatches:
    """The training set in random order, cropped, scaled and mirrored at random; twin of `kdtable.data.stream.Stream`.

    Attributes:
        waited: seconds that whoever asked for a batch waited for it to be decoded, since the start.
    """

    #: A crop may begin and end anywhere.
    views: None = None

    def __init__(
        self, loader: Loader, labels: torch.Tensor, batch_size: int, device: torch.device, ranks: Ranks
    ) -> None:
        self.waited = 0.0
        self._ranks = ranks
        self._loader = loader
        self._labels = labels
        self._slices = slices(len(labels), batch_size, ranks.micro_batches)
        self._device = device

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._slices)

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch of a stage, from 1: a function of the arguments alone."""
        count = len(self._labels)
        order = torch.randperm(count, generator=seeding.generator("batches", seed, stage, epoch))
        seeds = torch.randint(2**63 - 1, (count,), generator=seeding.generator("crops", seed, stage, epoch))
        whole = [order[part] for part in self._slices]
        shares = [_share(index, self._ranks) for index in whole]
        decoded = self._timed(self._loader.batches(_keys("train", shares, seeds)))
        for index, share, images in zip(whole, shares, decoded, strict=True):
            yield _batch(images, self._labels, share, len(index), epoch, self._device)

    def _timed(self, decoded: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        while True:
            started = time.perf_counter()
            images = next(decoded, None)
            self.waited += time.perf_counter() - started
            if images is None:
                return
            yield images


def _keys(part: PartName, parts: Sequence[torch.Tensor], seeds: torch.Tensor | None = None) -> Iterator[list[Key]]:
    """The keys of each batch, made when it is asked for: an epoch of ImageNet has more than a million."""
    of_train = part == "train"
    for index in parts:
        drawn = [None] * len(index) if seeds is None else seeds[index].tolist()
        yield [(of_train, place, seed) for place, seed in zip(index.tolist(), drawn, strict=True)]


def _share(index: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """What of a batch is this process's: it need not decode the rest."""
    return index[ranks.shard(len(index))]


def _batch(
    images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, whole: int, epoch: int, device: torch.device
) -> Batch:
    """A share, on a device, of a batch of so many images; this one's are (B, S, S, 3) uint8."""
    here = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    of = whole if whole != len(index) else None
    return Batch(scaled(here), labels[index].to(device), index.to(device), epoch, None, of)
