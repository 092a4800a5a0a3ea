"""Hold out training images for validation. Does not import torch at the top."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdtable import seeding
from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest

if TYPE_CHECKING:
    import torch

#: Positions in the training set.
Positions = NDArray[np.int64]


def hold_out(spec: DataSpec, count: int | None) -> DataSpec:
    """The same data set with ``count`` of its training images held out; unchanged for ``None``.

    Normalisation constants stay those of all training images.

    Raises:
        BadRequest: no image would be held out, or some class would have none left to train on.
    """
    if count is None:
        return spec
    if count < 1:
        raise BadRequest(f"--validation {count} holds out no image: use at least 1, or leave it out")
    if count > spec.train_count - spec.num_classes:
        raise BadRequest(
            f"--validation {count} leaves too little to train on: {spec.name} has {spec.train_count} training images "
            f"of {spec.num_classes} classes, and each class needs one"
        )
    return replace(spec, validation=count, train_count=spec.train_count - count)


def split(spec: DataSpec, labels: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """The positions to train on and those held out, each (n,) int64 and ascending.

    Every class gives its share, rounded so that the shares add up (largest remainder). Which of its images are held
    out depends only on the labels and their order: not on a run's seed, so all seeds train on the same images.

    Args:
        spec: by :func:`hold_out`.
        labels: (N,) int64, of all training images.

    Raises:
        BadRequest: a class would have no image left to train on.
    """
    import torch

    sizes = np.bincount(labels.numpy(), minlength=spec.num_classes)
    shares = _shares(sizes, spec.validation)
    if (emptied := np.flatnonzero((shares > 0) & (shares >= sizes))).size:
        label = int(emptied[0])
        raise BadRequest(
            f"--validation {spec.validation} holds out {shares[label]} images of class {label} of {spec.name}, which "
            f"has {sizes[label]}: nothing of it is left to train on, so hold out fewer"
        )
    order = torch.randperm(len(labels), generator=seeding.generator("validation"))
    held = torch.cat([order[labels[order] == label][:share] for label, share in enumerate(shares.tolist())])
    left = torch.ones(len(labels), dtype=torch.bool)
    left[held] = False
    return left.nonzero().flatten(), held.sort().values


def _shares(sizes: Positions, count: int) -> Positions:
    """How many images of each class are held out, in proportion to its size; together ``count``."""
    exact = sizes * count
    shares: Positions = exact // sizes.sum()
    largest = np.argsort(-(exact % sizes.sum()), kind="stable")[: count - int(shares.sum())]
    shares[largest] += 1
    return shares
