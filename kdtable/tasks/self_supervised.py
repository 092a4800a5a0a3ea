"""Training without labels, and the linear probe that measures it.

A run's first stage has the task ``two-views``, whose batches are two views of each image and no label; its second one
``self-supervised``, which is classification by a linear classifier on a frozen trunk. Both measure by nearest
neighbours, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from kdtable.data.sets import Images
from kdtable.data.stream import Batch, PartName
from kdtable.data.views import Views
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.methods.base_terms import BaseTerm, labels_term
from kdtable.models.outputs import Outputs
from kdtable.numerics.precision import Precision
from kdtable.recipes.metrics import SELF_SUPERVISED
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Meter
from kdtable.tasks.classification import Accuracy, Classification, TrainAccuracy
from kdtable.tasks.neighbours import Neighbours


class _Measured(Classification):
    """Classification whose trunk is measured by its nearest neighbours."""

    measured_features: ClassVar[frozenset[str]] = frozenset({"embedding"})

    @torch.no_grad()
    def neighbours(self, network: nn.Module) -> Neighbours:
        """A meter by the network's embeddings of the training images, in the test view; the network is in eval mode."""
        batches = Classification.evaluation_batches(self, "train", SINGLE_PROCESS)
        training = ((batch, self.forward(network, batch, self.measured_features)) for batch in batches)
        return Neighbours(training, self.images.spec.num_classes)

    def closing_meter(self, *, with_teacher: bool) -> Any:
        """None: there are no other measures."""
        return None

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """See the base class."""
        network.eval()
        meter = self.meter_of("test", network)
        for batch in self.evaluation_batches("test", SINGLE_PROCESS):
            meter.update(self.forward(network, batch, self.measured_features), batch)
        return meter.result()


class SelfSupervised(_Measured):
    """The linear probe: labels, and a network whose classifier alone is trained."""

    metrics = SELF_SUPERVISED
    base_terms: ClassVar[Mapping[str, BaseTerm]] = {"ce": labels_term()}

    def __init__(
        self, images: Images, recipe: Recipe, seed: int, precision: Precision, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        super().__init__(images, recipe, seed, precision, ranks)
        self._known: WeakKeyDictionary[nn.Module, dict[PartName, float]] = WeakKeyDictionary()

    @classmethod
    def base_terms_of(cls, recipe: Recipe) -> Mapping[str, BaseTerm]:
        """See the base class; the probe has no label smoothing."""
        return cls.base_terms

    def meter(self, part: PartName) -> Meter:
        """See the base class."""
        return TrainAccuracy(self.device) if part == "train" else ProbeAccuracy()

    def meter_of(self, part: PartName, network: nn.Module) -> Meter:
        """See the base class: by the classifier, and by nearest neighbours, which a frozen trunk leaves as they are."""
        if self.images.spec.streamed:
            return ProbeAccuracy()
        known = self._known.setdefault(network, {})
        return _Both(part, None if part in known else self.neighbours(network), known)


class ProbeAccuracy(Accuracy):
    """Accuracies of the linear classifier, in [0, 1]: ``probe-top1`` and ``probe-top5``."""

    def result(self) -> dict[str, float]:
        """See `kdtable.tasks.base.Meter`."""
        return {f"probe-{name}": value for name, value in super().result().items()}


class _Both(ProbeAccuracy):
    """Accuracies of the classifier and of nearest neighbours; the latter once for each network."""

    def __init__(self, part: PartName, near: Neighbours | None, known: dict[PartName, float]) -> None:
        super().__init__()
        self._part, self._near, self._known = part, near, known

    def update(self, outputs: Outputs, batch: Batch) -> None:
        super().update(outputs, batch)
        if self._near is not None:
            self._near.update(outputs, batch)

    def merge(self, ranks: Ranks) -> None:
        super().merge(ranks)
        if self._near is not None:
            self._near.merge(ranks)

    def result(self) -> dict[str, float]:
        if self._near is not None:
            self._known[self._part] = self._near.result()["knn"]
        return super().result() | {"knn": self._known[self._part]}


class TwoViews(_Measured):
    """Two views of each image, without labels; nearest neighbours tell how far a student is."""

    metrics = SELF_SUPERVISED[-1:]
    base_terms: ClassVar[Mapping[str, BaseTerm]] = {}

    def __init__(
        self, images: Images, recipe: Recipe, seed: int, precision: Precision, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        super().__init__(images, recipe, seed, precision, ranks)
        self._views = self.images.two_views(recipe, self.device, ranks)

    @classmethod
    def base_terms_of(cls, recipe: Recipe) -> Mapping[str, BaseTerm]:
        """None: losses are the methods'."""
        return cls.base_terms

    def batches(self, stage: str, epoch: int) -> Iterator[Views]:
        """See the base class."""
        return self._views.epoch(self.seed, stage, epoch)

    @property
    def waited(self) -> float:
        """See the base class."""
        return self._views.waited

    def sweep(self, epoch: int) -> Iterator[Batch]:
        """See the base class; labels are 0."""
        for batch in super().sweep(epoch):
            yield replace(batch, labels=torch.zeros_like(batch.labels))

    def meter(self, part: PartName) -> Meter:
        """See the base class. In training nothing is measured."""
        if part != "train":
            raise ValueError("nearest neighbours are those of one network: ask for its own meter")
        return _Nothing()

    def meter_of(self, part: PartName, network: nn.Module) -> Meter:
        """See the base class; nothing of image folders, of which a pass would take longer than an epoch."""
        return _Nothing() if self.images.spec.streamed else self.neighbours(network)


class _Nothing:
    """Measures nothing."""

    def update(self, outputs: Outputs, batch: Batch) -> None:
        pass

    def merge(self, ranks: Ranks) -> None:
        pass

    def result(self) -> dict[str, float]:
        return {}
