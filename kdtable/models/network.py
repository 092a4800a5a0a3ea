"""The base class of networks: input normalisation, and the tensors that a forward pass keeps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdtable.models.outputs import EVERYTHING, Outputs


class Hold:
    """Collects the tensors of one forward pass that ``keep`` names and drops the others at once.

    A network gives it every tap, whatever is kept, so ``keep`` cannot change what is computed.
    """

    def __init__(self, keep: frozenset[str]) -> None:
        if not keep <= EVERYTHING:
            raise ValueError(f"cannot keep {sorted(keep - EVERYTHING)}; there are {sorted(EVERYTHING)}")
        self._keep = keep
        self._stem: Tensor | None = None
        self._stages: list[Tensor] = []
        self._preacts: list[Tensor] = []
        self._branches: list[tuple[Tensor, Tensor]] = []
        self._last: Tensor | None = None

    def stem(self, x: Tensor) -> None:
        """Take the first feature map."""
        if "stem" in self._keep:
            self._stem = x

    def stage(self, x: Tensor) -> None:
        """Take the next stage's feature map."""
        if "stages" in self._keep:
            self._stages.append(x)

    def preact(self, x: Tensor) -> None:
        """Take the next stage's feature map before its activation."""
        if "preacts" in self._keep:
            self._preacts.append(x)

    def branch(self, logits: Tensor, embedding: Tensor) -> None:
        """Take the logits and the embedding of the next extra classifier."""
        if "branches" in self._keep:
            self._branches.append((logits, embedding))

    def last(self, x: Tensor) -> Tensor:
        """Take the map whose spatial mean is the embedding; returns it."""
        if "last" in self._keep:
            self._last = x
        return x

    def outputs(self, logits: Tensor, embedding: Tensor) -> Outputs:
        """The kept tensors, with the logits and the embedding of the pass."""
        return Outputs(
            logits=logits,
            stem=self._stem,
            stages=tuple(self._stages),
            preacts=tuple(self._preacts),
            embedding=embedding if "embedding" in self._keep else None,
            branches=tuple(self._branches),
            last=self._last,
        )


class Network(nn.Module, ABC):
    """An image classifier that returns its feature maps as :class:`Outputs`.

    A subclass sets ``head`` and ``norms`` and implements :meth:`embed`.

    Attributes:
        head: names of the children behind the last feature map, the classifier last. All other children make the
            feature maps; AB and FSP train them in their initial stage.
        classifies: whether its logits are those of classes.
        foldable: whether its graph can be traced, to fold batch norms into convolutions.
        name: its canonical name.
        norms: for each stage the name of the last batch norm before its activation.
    """

    head: ClassVar[tuple[str, ...]]
    classifies: ClassVar[bool] = True
    foldable: bool = True
    name: str = ""
    norms: tuple[str, ...] = ()
    input_mean: Tensor | None
    input_std: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("input_mean", None, persistent=False)
        self.register_buffer("input_std", None, persistent=False)

    def normalise_inputs(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Make the network subtract ``mean`` from its images and divide by ``std`` (one number per channel).

        Raises:
            ValueError: their lengths differ, or a ``std`` is not positive.
        """
        if len(mean) != len(std):
            raise ValueError(f"mean has {len(mean)} channels and std has {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"every std must be positive, not {tuple(std)}")
        like = next(self.parameters())
        self.input_mean = torch.tensor(mean, dtype=like.dtype, device=like.device).view(-1, 1, 1)
        self.input_std = torch.tensor(std, dtype=like.dtype, device=like.device).view(-1, 1, 1)

    def forward(self, images: Tensor, keep: frozenset[str] = EVERYTHING) -> Outputs:
        """The logits of ``images`` (N, 3, H, W), and the tensors that ``keep`` names.

        ``keep`` limits what stays in memory. It never changes how anything is computed.
        """
        if self.input_mean is not None and self.input_std is not None:
            images = (images - self.input_mean) / self.input_std
        hold = Hold(keep)
        embedding = self.embed(images, hold)
        return hold.outputs(self.classify(embedding), embedding)

    @abstractmethod
    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """The embedding (N, D) of normalised images; gives ``hold`` the stem, each stage and preact, and the last map.

        Do not change these tensors in place afterwards.
        """

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Load the ``state_dict`` of the same network; a classifier for other classes keeps its initialisation."""
        own = self.state_dict()
        self.load_state_dict({key: weights[key] if weights[key].shape == own[key].shape else own[key] for key in own})

    def feature_modules(self) -> list[nn.Module]:
        """The modules that make the feature maps: children, or their children."""
        return [module for name, module in self.named_children() if name not in self.head]

    def tap_norms(self) -> tuple[nn.BatchNorm2d | None, ...]:
        """For each stage the batch norm that made its preact; if that is a sum, the one of the branch.

        ``None`` if there is none, for instance because it was folded. A ShuffleNetV2's covers only the half of the
        channels that the last block computes.
        """
        modules = (self.get_submodule(name) for name in self.norms)
        return tuple(module if isinstance(module, nn.BatchNorm2d) else None for module in modules)

    def linear_classifier(self) -> nn.Linear:
        """The layer that makes the logits of the embedding."""
        (layer,) = (m for m in self.get_submodule(self.head[-1]).modules() if isinstance(m, nn.Linear))
        return layer

    def classify(self, embedding: Tensor) -> Tensor:
        """The logits (N, classes) of an embedding (N, D)."""
        logits: Tensor = self.get_submodule(self.head[-1])(embedding)
        return logits
