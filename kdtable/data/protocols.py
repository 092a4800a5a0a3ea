"""Protocols of image sets, as training uses them."""

from collections.abc import Iterator
from typing import Literal, Protocol

import torch

from kdtable.data.spec import DataSpec
from kdtable.data.stream import Batch
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.recipes.recipe import Recipe

#: The training or the test images.
PartName = Literal["train", "test"]


class Batches(Protocol):
    """The training set in random order, augmented at random."""

    def __len__(self) -> int:
        """Batches per epoch."""

    @property
    def views(self) -> int | None:
        """Number of views of an image; ``None`` if they are not countable."""

    @property
    def waited(self) -> float:
        """Total seconds that the caller waited for images to be decoded."""

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[Batch]:
        """The batches of a stage's epoch (from 1); they depend only on the arguments."""


class Images(Protocol):
    """A set of images with labels."""

    @property
    def spec(self) -> DataSpec:
        """The set's name and identity."""

    @property
    def train_labels(self) -> torch.Tensor:
        """(N,) int64."""

    def stream(self, recipe: Recipe, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> Batches:
        """The training set, augmented as in ``recipe``: this rank's shards of the batches, on ``device``."""

    def evaluation_batches(
        self,
        part: PartName,
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> Iterator[Batch]:
        """All images of a part in the test view, in batches on ``device``; epoch is 0.

        Images keep their order, unless ``order`` draws one. The last batch may be shorter. Each rank gets its shard of
        every batch.
        """
