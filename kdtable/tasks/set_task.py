"""A task whose batches are those that its data set makes."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from kdtable import seeding
from kdtable.data.sets import Images
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.numerics.precision import Precision
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Task


class SetTask(Task):
    """A task on the training batches and evaluation batches of a set of images; see the base class."""

    images: Any

    def __init__(
        self, images: Images, recipe: Recipe, seed: int, precision: Precision, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        super().__init__(images, recipe, seed, precision, ranks)
        self._batch_size = recipe.batch_size
        self._stream = images.stream(recipe, self.device, ranks)

    def batches(self, stage: str, epoch: int) -> Iterator[Any]:
        """See the base class."""
        return self._stream.epoch(self.seed, stage, epoch)

    def sweep(self, epoch: int) -> Iterator[Any]:
        """See the base class. The last batch may be shorter; batches have epoch 0."""
        order = seeding.generator("sweep", self.seed, epoch)
        batches: Iterator[Any] = self.images.evaluation_batches(
            "train", self._batch_size, self.device, order, self.ranks
        )
        return batches

    def last_watched_batch(self, stage: str, epoch: int) -> Any:
        """See the base class; at most the recipe's batch size."""
        order = seeding.generator("judges", self.seed, stage, epoch)
        batches = self.images.evaluation_batches(self.watched, self._batch_size, self.device, order)
        return deque(batches, maxlen=1).pop()

    @property
    def waited(self) -> float:
        """See the base class."""
        return self._stream.waited
