"""What all networks have in common: input normalisation, and which tensors of a forward pass are held."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdtable.models.outputs import EVERYTHING, Outputs


class Hold:
    """Takes note of the tensors of one forward pass, and drops at once those that ``keep`` does not name.

    A network shows it everything, whatever is kept, so ``keep`` cannot change what is computed.
    """

    def __init__(self, keep: frozenset[str]) -> None:
        if not keep <= EVERYTHING:
            raise ValueError(f"cannot keep {sorted(keep - EVERYTHING)}; there are {sorted(EVERYTHING)}")
        self._keep = keep
        self._stem: Tensor | None = None
        self._stages: list[Tensor] = []
        self._preacts: list[Tensor] = []
        self._branches: list[tuple[Tensor, Tensor]] = []

    def stem(self, x: Tensor) -> None:
        """The first feature map."""
        if "stem" in self._keep:
            self._stem = x

    def stage(self, x: Tensor) -> None:
        """The next stage's feature map."""
        if "stages" in self._keep:
            self._stages.append(x)

    def preact(self, x: Tensor) -> None:
        """The next stage's feature map before its activation."""
        if "preacts" in self._keep:
            self._preacts.append(x)

    def branch(self, logits: Tensor, embedding: Tensor) -> None:
        """What the next extra classifier says, and what it says it of."""
        if "branches" in self._keep:
            self._branches.append((logits, embedding))

    def outputs(self, logits: Tensor, embedding: Tensor) -> Outputs:
        """All that was kept, with what ends the pass."""
        return Outputs(
            logits=logits,
            stem=self._stem,
            stages=tuple(self._stages),
            preacts=tuple(self._preacts),
            embedding=embedding if "embedding" in self._keep else None,
            branches=tuple(self._branches),
        )


class Network(nn.Module, ABC):
    """A classifier of images whose feature maps can be looked at.

    Attributes:
        head: the children behind the last feature map, the classifier last. All other children make the
            feature maps; they are what AB and FSP train in their initial stage.
        name: the canonical name that it was built by.
        norms: for each stage the name of the last batch norm before its activation.
    """

    head: ClassVar[tuple[str, ...]]
    name: str = ""
    norms: tuple[str, ...] = ()
    input_mean: Tensor | None
    input_std: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("input_mean", None, persistent=False)
        self.register_buffer("input_std", None, persistent=False)

    def normalise_inputs(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """From now on, subtract ``mean`` from the images and divide them by ``std`` (one number per channel).

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

        ``keep`` limits what is held in memory, never how anything is computed.
        """
        if self.input_mean is not None and self.input_std is not None:
            images = (images - self.input_mean) / self.input_std
        hold = Hold(keep)
        embedding = self.embed(images, hold)
        return hold.outputs(self.classify(embedding), embedding)

    @abstractmethod
    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """The embedding (N, D) of normalised images; shows ``hold`` the stem, each stage and each preact.

        What was shown must not be changed in place afterwards.
        """

    def feature_modules(self) -> list[nn.Module]:
        """The modules that make the feature maps: children, or children of these."""
        return [module for name, module in self.named_children() if name not in self.head]

    def tap_norms(self) -> tuple[nn.BatchNorm2d | None, ...]:
        """For each stage the batch norm that made its preact, or the part of it that is no shortcut's.

        ``None`` where there is none, as where it was folded. Of a ShuffleNetV2 it has the channels of the half that
        the last block worked on.
        """
        modules = (self.get_submodule(name) for name in self.norms)
        return tuple(module if isinstance(module, nn.BatchNorm2d) else None for module in modules)

    def classify(self, embedding: Tensor) -> Tensor:
        """The logits (N, classes) of an embedding (N, D)."""
        logits: Tensor = self.get_submodule(self.head[-1])(embedding)
        return logits
