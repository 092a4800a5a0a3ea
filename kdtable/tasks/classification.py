"""Image classification: cross-entropy and soft targets; top-1 and top-5 accuracy."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from kdtable import seeding
from kdtable.data.detection.sets import DetectionSet
from kdtable.data.sets import Images, ImageSet
from kdtable.data.spec import DataSpec
from kdtable.data.stream import Batch, PartName
from kdtable.data.streamed import StreamedSet
from kdtable.data.weak_strong import WeakAndStrong
from kdtable.distributed import SINGLE_PROCESS, Ranks, shard_sizes
from kdtable.errors import BadRequest
from kdtable.methods.base_terms import CLASSIFIERS, BaseTerm, labels_term
from kdtable.models.blank import blank_images
from kdtable.models.dropout import on_shard
from kdtable.models.outputs import Outputs
from kdtable.numerics.precision import Precision
from kdtable.recipes.metrics import CLASSIFICATION, Metric
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Meter
from kdtable.tasks.closing import ClosingMeasures
from kdtable.tasks.set_task import SetTask

#: Images per evaluation pass: large enough to be fast, small enough for a resnet110 on a laptop.
EVALUATION_BATCH: Final = 256


class Classification(SetTask):
    """Image classification on `kdtable.data.Batch`, with `kdtable.models.outputs.Outputs`; see the base class."""

    images: ImageSet | StreamedSet
    metrics: ClassVar[tuple[Metric, ...]] = CLASSIFICATION
    base_terms = CLASSIFIERS
    measured_features: ClassVar[frozenset[str]] = frozenset({"branches"})

    def __init__(
        self, images: Images, recipe: Recipe, seed: int, precision: Precision, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        if isinstance(images, DetectionSet):
            raise BadRequest(f"data set {images.spec.name} has boxes and no labels of whole images to classify")
        super().__init__(images, recipe, seed, precision, ranks)

    @classmethod
    def base_terms_of(cls, recipe: Recipe) -> Mapping[str, BaseTerm]:
        """See the base class: label smoothing changes ``ce``."""
        smoothing = recipe.label_smoothing
        return {**cls.base_terms, "ce": labels_term(smoothing)} if smoothing else cls.base_terms

    def evaluation_batches(self, part: PartName, ranks: Ranks | None = None) -> Iterator[Batch]:
        """See the base class."""
        # Memory for streamed images is estimated for one batch of the recipe, not more.
        size = min(EVALUATION_BATCH, self._batch_size) if self.images.spec.streamed else EVALUATION_BATCH
        return self.images.evaluation_batches(part, size, self.device, None, ranks or self.ranks)

    @staticmethod
    def probe(image_size: int, count: int = 1, like: Tensor | None = None) -> Batch:
        """Black images of class 0."""
        images = blank_images(count, image_size, like)
        labels = torch.zeros(count, dtype=torch.int64, device=images.device)
        return Batch(images, labels, labels, 0)

    @classmethod
    def imitation(cls, data: DataSpec, recipe: Recipe, seed: int, precision: Precision) -> "Classification":
        """Noise images, with the classes in turn as labels."""
        count, size = recipe.batch_size, data.image_size
        generator = seeding.generator("calibration")
        images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count) % data.num_classes
        return cls(ImageSet(data, images, labels, images, labels), recipe, seed, precision)

    def gather(self, outputs: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Outputs | None, Batch]:
        """See the base class; the batch's images are left out."""
        sizes = shard_sizes(batch.whole, self.ranks.size)

        def whole(shard: Tensor) -> Tensor:
            return self.ranks.all_gather(shard, sizes)

        gathered = outputs.mapped(whole), teacher and teacher.mapped(whole)
        labels, index = whole(batch.labels), whole(batch.index)
        return *gathered, Batch(batch.images[:0], labels, index, batch.epoch, None, batch.whole)

    @staticmethod
    def apply(network: nn.Module, batch: Batch, keep: frozenset[str]) -> Outputs:
        """See the base class; of strong views the logits alone."""
        outputs: Outputs = network(batch.images, keep)
        if isinstance(batch, WeakAndStrong):
            return replace(outputs, strong=network(batch.strong, frozenset()))
        return outputs

    def forward(self, network: nn.Module, batch: Batch, keep: frozenset[str]) -> Outputs:
        """See the base class."""
        with self.precision.autocast(), self._sharded(batch):
            outputs = self.apply(network, batch, keep)
        return outputs if self.precision.name in ("fp32", "tf32") else outputs.mapped(Tensor.float)

    def _sharded(self, batch: Batch) -> AbstractContextManager[None]:
        """Tell dropout layers which images of the whole batch this rank sees."""
        if self.ranks.size == 1 or batch.of is None:
            return nullcontext()
        return on_shard(self.ranks.shard(batch.whole).start, batch.whole)

    def meter(self, part: PartName) -> Meter:
        """See the base class."""
        return TrainAccuracy(self.device) if part == "train" else Accuracy()

    def closing_meter(self, *, with_teacher: bool) -> ClosingMeasures:
        """See the base class."""
        return ClosingMeasures(self.images.spec.num_classes, self.sum_dtype, with_teacher=with_teacher)


class TrainAccuracy:
    """Accuracy on the augmented training images during the epoch, in [0, 1]: ``train-top1``.

    A mixed image counts as the class of largest weight.
    """

    def __init__(self, device: torch.device) -> None:
        self._hits, self._images = torch.zeros(2, dtype=torch.int64, device=device).unbind()

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """See `kdtable.tasks.base.Meter`."""
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(dim=1)
        self._hits += (outputs.logits.detach().argmax(dim=1) == labels).sum()
        self._images += len(batch)

    def merge(self, ranks: Ranks) -> None:
        """See `kdtable.tasks.base.Meter`."""
        self._hits, self._images = ranks.all_reduce(torch.stack([self._hits, self._images])).unbind()

    def result(self) -> dict[str, float]:
        """See `kdtable.tasks.base.Meter`."""
        return {"train-top1": int(self._hits) / int(self._images)}


class Accuracy:
    """Accuracies in [0, 1] in the test view: ``top1``, ``top5``, and ``branch1-top1``, ... of extra classifiers.

    Top-5 is top-C for C < 5 classes.
    """

    def __init__(self) -> None:
        self._hits = torch.zeros((), dtype=torch.int64)
        self._images = 0

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """See `kdtable.tasks.base.Meter`."""
        logits = outputs.logits
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels.unsqueeze(1)
        branches = [(logits.argmax(dim=1) == batch.labels).sum() for logits, _ in outputs.branches]
        hits = torch.stack([ranked[:, 0].sum(), ranked.sum(), *branches])
        self._hits = self._hits + hits
        self._images += batch.whole

    def merge(self, ranks: Ranks) -> None:
        """See `kdtable.tasks.base.Meter`. Only hits are summed: every rank already counts whole batches."""
        self._hits = ranks.all_reduce(self._hits)

    def result(self) -> dict[str, float]:
        """See `kdtable.tasks.base.Meter`."""
        top1, top5, *branches = (self._hits.cpu().double() / self._images).tolist()
        return {"top1": top1, "top5": top5, **{f"branch{i}-top1": x for i, x in enumerate(branches, start=1)}}
