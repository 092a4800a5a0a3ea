"""What the engine asks of a set of images."""

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
    """The training set in random order, in random views."""

    def __len__(self) -> int:
        """Batches per epoch."""

    @property
    def views(self) -> int | None:
        """How many views of an image there are; ``None`` where they have no end."""

    @property
    def waited(self) -> float:
        """Seconds, since the start, that whoever asked for a batch waited for images to be decoded."""

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch of a stage, from 1: a function of the arguments alone."""


class Images(Protocol):
    """A set of images with labels."""

    @property
    def spec(self) -> DataSpec:
        """What it is called, and what its identity is made of."""

    @property
    def train_labels(self) -> torch.Tensor:
        """(N,) int64."""

    def stream(self, recipe: Recipe, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> Batches:
        """The training set as a recipe augments it: this process's shares of the batches, on ``device``."""

    def evaluation_batches(
        self,
        part: PartName,
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> Iterator[Batch]:
        """All images of a part in the view that networks are tested on, in batches on ``device``; epoch is 0.

        They come in their own order, or in one that ``order`` draws. The last batch may be shorter. Of each batch this
        process gets its share.
        """
