"""kNN accuracy: how well the labels of the nearest training images tell those of test images."""

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.distributed import Ranks
from kdtable.models.outputs import Outputs

#: Neighbours of an image, and the temperature of their weights, as in MoCo's CIFAR-10 demo.
NEIGHBOURS: Final = 200
TEMPERATURE: Final = 0.1


def nearest(embeddings: Tensor, bank: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(B,) int64: the class with the largest sum of exp(similarity / T) over the k training images most similar.

    Args:
        embeddings: (B, D) of length 1.
        bank: (D, N) of the training images, columns of length 1.
        labels: (N,) int64, theirs.
        classes: their number.
    """
    similarity, found = (embeddings @ bank).topk(min(NEIGHBOURS, bank.shape[1]), dim=1)
    votes = similarity.new_zeros(len(embeddings), classes)
    return votes.scatter_add_(1, labels[found], (similarity / TEMPERATURE).exp()).argmax(dim=1)


class Neighbours:
    """The fraction of images whose class the nearest training images tell: ``knn``, in [0, 1].

    Args:
        training: batches of the training images, and a network's outputs for them.
        classes: number of classes.
    """

    def __init__(self, training: Iterable[tuple[Batch, Outputs]], classes: int) -> None:
        vectors, labels = zip(*((_unit(outputs), batch.labels) for batch, outputs in training), strict=True)
        self._bank, self._labels, self._classes = torch.cat(vectors).T.contiguous(), torch.cat(labels), classes
        self._hits = torch.zeros((), dtype=torch.int64)
        self._images = 0

    @torch.no_grad()
    def update(self, outputs: Outputs, batch: Batch) -> None:
        """See `kdtable.tasks.base.Meter`."""
        told = nearest(_unit(outputs), self._bank, self._labels, self._classes)
        self._hits = self._hits + (told == batch.labels).sum()
        self._images += batch.whole

    def merge(self, ranks: Ranks) -> None:
        """See `kdtable.tasks.base.Meter`."""
        self._hits = ranks.all_reduce(self._hits)

    def result(self) -> dict[str, float]:
        """See `kdtable.tasks.base.Meter`."""
        return {"knn": int(self._hits) / self._images}


def _unit(outputs: Outputs) -> Tensor:
    assert outputs.embedding is not None
    return F.normalize(outputs.embedding, dim=1)
