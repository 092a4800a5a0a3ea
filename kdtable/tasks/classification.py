"""The task: what a batch is, how a network is run on it, and what is measured.

The rest of the engine asks these questions here, so that other tasks can be added beside image classification.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdtable import seeding
from kdtable.data.protocols import Images
from kdtable.data.stream import Batch
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.models.dropout import showing
from kdtable.models.outputs import Outputs
from kdtable.numerics.precision import Precision
from kdtable.recipes.recipe import Recipe

#: Images per evaluation pass: large enough to be fast, small enough for a resnet110 on a laptop.
EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of test images in [0, 1]; top-5 is top-C where there are fewer than five classes.

    ``branches`` has the top-1 of each extra classifier, in their order in ``Outputs``.
    """

    top1: float
    top5: float
    branches: tuple[float, ...] = ()


class Classification:
    """Image classification on one data set, with the batches of one recipe and seed."""

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        seed: int,
        precision: Precision,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.images = images
        self.precision = precision
        self.seed = seed
        self.ranks = ranks
        self.device = precision.device
        self._batch_size = recipe.batch_size
        self._stream = images.stream(recipe, self.device, ranks)

    @property
    def sum_dtype(self) -> torch.dtype:
        """What sums over an epoch are kept in: float64, which Apple's GPUs lack."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def batches(self, stage: str, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch: the same for every student, whenever they are asked for."""
        return self._stream.epoch(self.seed, stage, epoch)

    def sweep(self, epoch: int) -> Iterator[Batch]:
        """All training images in the view that networks are tested on, in a random order of that epoch.

        A function of the seed and ``epoch``; the last batch may be shorter. Batches say that they are of epoch 0.
        """
        order = seeding.generator("sweep", self.seed, epoch)
        return self.images.evaluation_batches("train", self._batch_size, self.device, order, self.ranks)

    @property
    def waited(self) -> float:
        """Seconds, since the start, that whoever asked for a batch waited for images to be decoded."""
        return self._stream.waited

    def run(self, network: nn.Module, batch: Batch, keep: frozenset[str]) -> Outputs:
        """A forward pass, in the run's precision; what comes out is float32 again."""
        with self.precision.autocast(), self._showing(batch):
            outputs: Outputs = network(batch.images, keep)
        return outputs if self.precision.name in ("fp32", "tf32") else _float32(outputs)

    def _showing(self, batch: Batch) -> AbstractContextManager[None]:
        """Tells networks that drop at random which images of the whole batch they see."""
        if self.ranks.size == 1 or batch.of is None:
            return nullcontext()
        return showing(self.ranks.shard(batch.whole).start, batch.whole)

    def correct(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Number of images classified right, as a tensor on the device."""
        return (outputs.logits.detach().argmax(dim=1) == batch.labels).sum()

    def test_batches(self, ranks: Ranks | None = None) -> Iterator[Batch]:
        """The test images, shared by the processes of ``world`` (the task's own), in their order."""
        # Photographs are so large that memory has been found for one batch of the recipe, and no more.
        size = min(EVALUATION_BATCH, self._batch_size) if self.images.spec.streamed else EVALUATION_BATCH
        return self.images.evaluation_batches("test", size, self.device, None, ranks or self.ranks)

    def last_test_batch(self, stage: str, epoch: int) -> Batch:
        """The last batch, of the recipe's size or smaller, of the test images in a random order of that epoch."""
        order = seeding.generator("judges", self.seed, stage, epoch)
        batches = self.images.evaluation_batches("test", self._batch_size, self.device, order)
        return deque(batches, maxlen=1).pop()

    def hits(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Numbers of images classified right, on the device: top-1, top-5, and the top-1 of each branch; (2 + k,)."""
        logits = outputs.logits
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels.unsqueeze(1)
        branches = [(logits.argmax(dim=1) == batch.labels).sum() for logits, _ in outputs.branches]
        return torch.stack([ranked[:, 0].sum(), ranked.sum(), *branches])

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> Accuracy:
        """Accuracy on the test set, which this process looks at alone. Leaves the network in eval mode."""
        network.eval()
        hits, images = [], 0
        for batch in self.test_batches(SINGLE_PROCESS):
            hits.append(self.hits(self.run(network, batch, frozenset({"branches"})), batch))
            images += batch.whole
        return accuracy_of(torch.stack(hits).sum(dim=0), images)


def accuracy_of(hits: Tensor, images: int) -> Accuracy:
    """The accuracy of ``hits`` (see :meth:`Classification.hits`), summed over so many images."""
    top1, top5, *branches = (hits.cpu().double() / images).tolist()
    return Accuracy(top1, top5, tuple(branches))


def _float32(outputs: Outputs) -> Outputs:
    return Outputs(
        logits=outputs.logits.float(),
        stem=None if outputs.stem is None else outputs.stem.float(),
        stages=tuple(x.float() for x in outputs.stages),
        preacts=tuple(x.float() for x in outputs.preacts),
        embedding=None if outputs.embedding is None else outputs.embedding.float(),
        branches=tuple((a.float(), b.float()) for a, b in outputs.branches),
    )
