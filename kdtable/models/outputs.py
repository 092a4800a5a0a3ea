"""The outputs of a network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

#: The features that a network can return besides its logits. ``keep=`` takes a subset.
EVERYTHING: Final = frozenset({"stem", "stages", "preacts", "embedding", "branches", "last"})


@dataclass(frozen=True, slots=True)
class Outputs:
    """The tensors of one forward pass; those that ``keep`` leaves out are ``None`` or empty.

    Attributes:
        logits: (N, classes).
        stem: the first feature map (N, C, H, W), as the reference code exports it.
        stages: feature maps (N, C, H, W), shallow to deep.
        preacts: the maps of ``stages`` before their activation.
        embedding: (N, D), the classifier's input.
        branches: (logits, embedding) of each extra classifier, shallow to deep; empty on ordinary networks.
        last: the feature map (N, D, H, W) whose spatial mean is the embedding; ``None`` on networks without one.
        each: logits (N, classes) of each network, if the outputs are of several; ``logits`` are then those of the mean
            of their probabilities.
        strong: the outputs for the strong views, if the batch has two views of each image.
    """

    logits: Tensor
    stem: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    preacts: tuple[Tensor, ...] = ()
    embedding: Tensor | None = None
    branches: tuple[tuple[Tensor, Tensor], ...] = ()
    last: Tensor | None = None
    each: tuple[Tensor, ...] = ()
    strong: "Outputs | None" = None

    @property
    def views(self) -> "tuple[Outputs, ...]":
        """The outputs for each view of the images: one, or the weak and the strong."""
        return (self,) if self.strong is None else (self, self.strong)

    def logits_at(self, temperature: float) -> Tensor:
        """Logits (N, classes) whose softmax at a temperature T > 0 is the soft target: ``logits``, of one network.

        Of several networks it is the mean of their softmaxes at T, which no average of logits gives.
        """
        return temperature * log_mean_softmax([z / temperature for z in self.each]) if self.each else self.logits

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        """The outputs with ``change`` applied to every tensor."""
        return Outputs(
            logits=change(self.logits),
            stem=None if self.stem is None else change(self.stem),
            stages=tuple(map(change, self.stages)),
            preacts=tuple(map(change, self.preacts)),
            embedding=None if self.embedding is None else change(self.embedding),
            branches=tuple((change(logits), change(embedding)) for logits, embedding in self.branches),
            last=None if self.last is None else change(self.last),
            each=tuple(map(change, self.each)),
            strong=None if self.strong is None else self.strong.mapped(change),
        )

    def part(self, rows: slice) -> "Outputs":
        """The outputs of some of the images."""
        return self.mapped(lambda tensor: tensor[rows])


def log_mean_softmax(logits: Sequence[Tensor]) -> Tensor:
    """(N, C) logarithm of the mean of several networks' softmaxes, finite for logits of any finite size.

    Args:
        logits: (N, C) of each network.
    """
    logs = torch.stack([F.log_softmax(z, dim=1) for z in logits])
    return logs.logsumexp(dim=0) - math.log(len(logits))
