"""Networks with extra classifiers on the feature maps of their stages."""

import copy
from collections.abc import Callable, Iterable
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from kdtable.models.blank import blank_images
from kdtable.models.heads import LinearHead
from kdtable.models.network import Hold, Network
from kdtable.models.outputs import Outputs

Branch = Callable[[Tensor], tuple[Tensor, Tensor]]


class Branched(Network):
    """A network with a branch on each of its first stages, shallow to deep.

    A branch maps a stage's feature map to logits and their embedding. It runs right after its stage, whether or not its
    outputs are kept. Keys of the ``state_dict`` are ``backbone.KEY`` and ``branches.<i>.KEY``.

    Args:
        backbone: gives this network's logits, embedding and feature maps. Build it before the branches, so that it
            starts from the same weights as alone.
        branches: modules that each return (logits, embedding) of a feature map.
    """

    head: ClassVar = ("branches",)

    def __init__(self, backbone: Network, branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.foldable = backbone.foldable
        self.branches = nn.ModuleList(branches)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        return self.backbone.embed(x, _Mounted(hold, self.mounted()))

    def classify(self, embedding: Tensor) -> Tensor:
        """The logits (N, classes) of the backbone's embedding (N, D)."""
        return self.backbone.classify(embedding)

    def linear_classifier(self) -> nn.Linear:
        """The backbone's."""
        return self.backbone.linear_classifier()

    def feature_modules(self) -> list[nn.Module]:
        """The backbone's."""
        return self.backbone.feature_modules()

    def tap_norms(self) -> tuple[nn.BatchNorm2d | None, ...]:
        """The backbone's."""
        return self.backbone.tap_norms()

    def mounted(self) -> list[Branch]:
        """The branches as callables, one for each of the first stages."""
        return [cast("Branch", branch) for branch in self.branches]


class _Mounted(Hold):
    """Pass everything on to another hold, and run each stage's branch."""

    def __init__(self, shown: Hold, branches: Iterable[Branch]) -> None:
        super().__init__(frozenset())
        self._shown = shown
        self._next = iter(branches)

    def stem(self, x: Tensor) -> None:
        self._shown.stem(x)

    def preact(self, x: Tensor) -> None:
        self._shown.preact(x)

    def last(self, x: Tensor) -> Tensor:
        return self._shown.last(x)

    def stage(self, x: Tensor) -> None:
        self._shown.stage(x)
        branch = next(self._next, None)
        if branch is not None:
            self._shown.branch(*branch(x))


def with_heads(backbone: Network, num_classes: int, image_size: int) -> Branched:
    """The network with a linear head on every stage, as DIH needs; the heads fit images of ``image_size`` pixels."""
    return Branched(backbone, (LinearHead(tap[0].numel(), num_classes) for tap in tap_shapes(backbone, image_size)))


@torch.no_grad()
def tap_shapes(network: Network, image_size: int) -> tuple[Tensor, ...]:
    """The stages for one image as meta tensors: shapes without data or computation."""
    with torch.device("meta"):
        image = blank_images(1, image_size)
    outputs: Outputs = copy.deepcopy(network).to("meta").eval()(image, frozenset({"stages"}))
    return outputs.stages
