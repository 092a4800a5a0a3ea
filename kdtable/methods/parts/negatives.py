"""Random draws of the training samples that a sample is contrasted with."""

import math

import numpy as np
import torch
from torch import Tensor


class ClassNegatives:
    """Draw positives and negatives by class, for a batch at once.

    Args:
        labels: (N,) int64 training labels of at least two classes, of any size.
        count: K, negatives per sample.
        generator: source of all draws, on the device of ``labels``.

    Raises:
        ValueError: all samples have the same class.
    """

    def __init__(self, labels: Tensor, count: int, generator: torch.Generator) -> None:
        self.labels = labels
        self.count = count
        self.generator = generator
        self.by_class = torch.argsort(labels, stable=True)
        self.sizes = torch.bincount(labels)
        self.starts = self.sizes.cumsum(0) - self.sizes
        largest = int(self.sizes.max())
        if largest == len(labels):
            raise ValueError("contrastive negatives need at least two classes in the training set")
        self.with_replacement = count > len(labels) - largest
        self.small_labels = labels.to(torch.int16 if len(self.sizes) < 2**15 else torch.int64)

    def draw(self, index: Tensor) -> Tensor:
        """(B, K) int64: for each sample a uniform draw from all samples of other classes.

        Draws without replacement, unless K exceeds the number of samples outside some class.
        """
        if self.with_replacement:
            return self._repeating(index)
        allowed = self.small_labels[index].unsqueeze(1) != self.small_labels
        others = len(self.labels) - self.sizes[self.labels[index]]
        return draw_subsets(allowed, others, self.count, self.generator)

    def same_class(self, index: Tensor) -> Tensor:
        """(B,) int64: for each sample a uniform draw from its own class, itself included."""
        classes = self.labels[index]
        return self.by_class[self.starts[classes] + self._below(self.sizes[classes])]

    def _repeating(self, index: Tensor) -> Tensor:
        classes = self.labels[index].unsqueeze(1)
        size = self.sizes[classes]
        position = self._below((len(self.labels) - size).expand(-1, self.count))
        # Positions count only samples of other classes: skip the block of the own class.
        position += (position >= self.starts[classes]) * size
        return self.by_class.take(position)

    def _below(self, limits: Tensor) -> Tensor:
        """Uniform integers in [0, limit), elementwise; the bias of the remainder is below limit / 2^53."""
        draws = torch.randint(2**53, limits.shape, generator=self.generator, device=limits.device)
        return draws.remainder_(limits)


def draw_subsets(allowed: Tensor, others: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each row of a mask, a uniform random subset of ``count`` of its true columns.

    Args:
        allowed: (B, N) bool, the columns that a row may take.
        others: (B,) number of true entries in each row, at least ``count``.
        count: size of each subset.
        generator: on the device of ``allowed``.

    Returns:
        (B, count) int64 column numbers, in no particular order.
    """
    if allowed.device.type == "cpu":
        subset = _draw_by_bytes(allowed, others, count, generator)
        if subset is not None:
            return subset
    return _draw_by_keys(allowed, count, generator)


def _draw_by_keys(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Take the ``count`` largest of one random key per column: simple, and fast where sorting is (a GPU)."""
    keys = torch.rand(allowed.shape, generator=generator, device=allowed.device)
    return keys.masked_fill_(~allowed, -1.0).topk(count, dim=1, sorted=False).indices


def _draw_by_bytes(allowed: Tensor, others: Tensor, count: int, generator: torch.Generator) -> Tensor | None:
    """Draw from the same distribution by one random *byte* per column, about eight times faster on a CPU.

    Takes the columns with a small byte, and fills up to ``count`` from a narrow band above by finer random keys. Given
    the number of bytes below the band, every subset is equally likely, so the draw is exactly uniform. Returns ``None``
    if the band misses ``count`` in some row (about once in a thousand batches): then draw by keys.
    """
    rows, columns = allowed.shape
    words = torch.empty(rows, math.ceil(columns / 8), dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)
    keys = words.view(torch.uint8)[:, :columns]
    fraction = count / others.double()
    margin = 5 * (others * fraction * (1 - fraction)).sqrt() + 1
    low = (256 * (count - margin) / others).floor().clamp(0, 255).to(torch.uint8).unsqueeze(1)
    high = (256 * (count + margin) / others).ceil().clamp(0, 256).to(torch.int16).unsqueeze(1)
    taken = (keys < low) & allowed
    band = (keys <= (high - 1).clamp_(min=0).to(torch.uint8)) & allowed & ~taken
    missing, in_band = count - _row_counts(taken), _row_counts(band)
    if bool(((missing < 0) | (missing > in_band)).any()):
        return None
    position = _true_places(band)
    row = position // columns
    fine = torch.rand(len(row), generator=generator, dtype=torch.float64)
    order = (row + fine).argsort()  # sorts within each row
    rank = torch.arange(len(row)) - (in_band.cumsum(0) - in_band)[row]
    taken.view(-1)[position[order[rank < missing[row]]]] = True
    return _true_places(taken).view(rows, count) % columns


def _row_counts(mask: Tensor) -> Tensor:
    """(B,) int64 number of true entries in each row; summing bytes is four times faster than summing booleans."""
    return mask.view(torch.uint8).sum(dim=1, dtype=torch.int32).long()


def _true_places(mask: Tensor) -> Tensor:
    """Flat positions of the true entries; numpy's search is nine times faster than torch's."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
