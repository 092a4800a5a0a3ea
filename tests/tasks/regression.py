"""A second task, with batches and outputs of its own: which number an image shows, as a number."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable import seeding
from kdtable.data.sets import Images, ImageSet
from kdtable.data.spec import DataSpec
from kdtable.data.stream import Batch, PartName
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.methods.base_terms import BaseTerm
from kdtable.numerics.precision import Precision
from kdtable.recipes.metrics import Metric
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Meter, Task


@dataclass(frozen=True, slots=True, eq=False)
class Numbered:
    """Images (B, 3, H, W) and the numbers (B,) float32 that they show."""

    images: Tensor
    numbers: Tensor
    epoch: int
    whole: int

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, rows: slice) -> "Numbered":
        return replace(self, images=self.images[rows], numbers=self.numbers[rows])


@dataclass(frozen=True, slots=True)
class Guess:
    """The numbers (B,) that a network reads, the embeddings (B, D), and what another head makes of these (B,)."""

    number: Tensor
    embedding: Tensor | None = None
    by_teacher: Tensor | None = None

    def part(self, rows: slice) -> "Guess":
        return Guess(self.number[rows], None if self.embedding is None else self.embedding[rows])


class Regression(Task):
    """The mean of a network's last layer is its guess; the teacher's heads see each student's embedding."""

    metrics = (
        Metric("mae", "mean absolute error", "", higher_is_better=False, stored="mae"),
        Metric("rmse", "root mean square error", "", higher_is_better=False, stored="rmse"),
    )
    base_terms: ClassVar[Mapping[str, BaseTerm]] = {
        "mse": BaseTerm(lambda s, _, batch, __: F.mse_loss(s.number, batch.numbers)),
        "kd": BaseTerm(lambda s, t, _, __: F.mse_loss(s.number, t.number), reads_teacher=True),
        "heads": BaseTerm(lambda s, t, _, __: F.mse_loss(s.number, t.by_teacher), reads_teacher=True),
    }
    per_student_features = frozenset({"by_teacher"})

    def __init__(
        self, images: Images, recipe: Recipe, seed: int, precision: Precision, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        super().__init__(images, recipe, seed, precision, ranks)
        self._batch_size = recipe.batch_size
        self._stream = images.stream(recipe, self.device, ranks)

    def batches(self, stage: str, epoch: int) -> Iterator[Numbered]:
        return map(_numbered, self._stream.epoch(self.seed, stage, epoch))

    def sweep(self, epoch: int) -> Iterator[Numbered]:
        return self._evaluation("train", seeding.generator("sweep", self.seed, epoch), self.ranks)

    def evaluation_batches(self, part: PartName, ranks: Ranks | None = None) -> Iterator[Numbered]:
        return self._evaluation(part, None, ranks or self.ranks)

    def last_watched_batch(self, stage: str, epoch: int) -> Numbered:
        draw = seeding.generator("judges", self.seed, stage, epoch)
        return deque(self._evaluation(self.watched, draw, SINGLE_PROCESS), maxlen=1).pop()

    def _evaluation(self, part: PartName, order: torch.Generator | None, ranks: Ranks) -> Iterator[Numbered]:
        return map(_numbered, self.images.evaluation_batches(part, self._batch_size, self.device, order, ranks))

    waited = 0.0

    @staticmethod
    def probe(image_size: int, count: int = 1, like: Tensor | None = None) -> Numbered:
        images = torch.zeros(count, 3, image_size, image_size)
        images = images if like is None else images.to(like)
        return Numbered(images, images[:, 0, 0, 0], 0, count)

    @classmethod
    def imitation(cls, data: DataSpec, recipe: Recipe, seed: int, precision: Precision) -> "Regression":
        images = torch.zeros(recipe.batch_size, 3, data.image_size, data.image_size, dtype=torch.uint8)
        labels = torch.zeros(recipe.batch_size, dtype=torch.int64)
        return cls(ImageSet(data, images, labels, images, labels), recipe, seed, precision)

    def gather(self, outputs: Any, teacher: Any, batch: Any) -> tuple[Any, Any, Any]:
        raise NotImplementedError

    @staticmethod
    def apply(network: nn.Module, batch: Numbered, keep: frozenset[str]) -> Guess:
        outputs = network(batch.images, keep & {"embedding"})
        return Guess(outputs.logits.mean(dim=1), outputs.embedding)

    def forward(self, network: nn.Module, batch: Numbered, keep: frozenset[str]) -> Guess:
        with self.precision.autocast():
            return self.apply(network, batch, keep)

    def teacher_for(self, network: Any, shared: Guess | None, student: Guess, batch: Numbered) -> Guess:
        assert shared is not None
        assert student.embedding is not None
        return replace(shared, by_teacher=network.fc(student.embedding).mean(dim=1))

    def meter(self, part: PartName) -> Meter:
        return Errors("train-" if part == "train" else "", self.device)


class Errors:
    """The mean absolute and the root mean square error, over images."""

    def __init__(self, prefix: str, device: torch.device) -> None:
        self._prefix = prefix
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, outputs: Guess, batch: Numbered) -> None:
        error = (outputs.number - batch.numbers).double()
        self._sums += torch.stack([error.abs().sum(), error.square().sum(), torch.tensor(float(len(batch))).double()])

    def merge(self, ranks: Ranks) -> None:
        ranks.all_reduce(self._sums)

    def result(self) -> dict[str, float]:
        absolute, square, images = self._sums.tolist()
        return {f"{self._prefix}mae": absolute / images, f"{self._prefix}rmse": float((square / images) ** 0.5)}


def _numbered(batch: Batch) -> Numbered:
    return Numbered(batch.images, batch.labels.float(), batch.epoch, batch.whole)
