"""The base class of detectors: one geometry, taps, and what ``keep`` names."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs
from kdtable.models.network import Hold, Network


class Detector(Network):
    """Modules of one of torchvision's detectors, with its names of parameters.

    Attributes:
        backbone: body and FPN.
        tapped: names in ``backbone.body`` of the ReLUs that end C2 to C5; of a module without one, its own name.
    """

    head = ()
    foldable = False
    backbone: nn.Module
    tapped: tuple[str, ...]

    def forward(  # type: ignore[override]
        self, batch: DetectionBatch, keep: frozenset[str] = frozenset()
    ) -> DetectorOutputs:
        """Run on a batch: losses in train mode, and what ``keep`` names (`kdtable.models.detection.outputs`)."""
        images = ImageList(self._pixels(batch), list(batch.sizes))
        with self._taps("taps" in keep) as taps:
            maps: dict[str, Tensor] = self.backbone(images.tensors)
        found = self.judged(images, maps, batch, keep)
        levels = tuple(maps.values()) if "levels" in keep else ()
        return replace(found, levels=levels, taps=tuple(taps))

    @abstractmethod
    def judged(
        self, images: ImageList, maps: Mapping[str, Tensor], batch: DetectionBatch, keep: frozenset[str]
    ) -> DetectorOutputs:
        """What the heads make of the FPN's maps."""

    def blank(self, batch: DetectionBatch, keep: frozenset[str]) -> DetectorOutputs:
        """The outputs for a batch without what depends on pixels: maps, and logits of the right width."""
        with self._taps("taps" in keep) as taps:
            maps = self.backbone(self._pixels(batch))
        return self.shapes(tuple(maps.values()), tuple(taps))

    @abstractmethod
    def shapes(self, levels: tuple[Tensor, ...], taps: tuple[Tensor, ...]) -> DetectorOutputs:
        """Outputs with these maps, and logits of which only the shape is meaningful."""

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Load the ``state_dict`` of the same detector, or the body's weights from that of a classifier.

        Group norms then keep their own: a classifier has none.
        """
        if self.state_dict().keys() == weights.keys():
            super().start_from(weights)
            return
        body = self.backbone.get_submodule("body")
        norms = [name for name, module in body.named_modules() if isinstance(module, nn.GroupNorm)]
        found = {}
        for key, own in body.state_dict().items():
            given = weights.get(key, weights.get(f"features.{key}"))
            kept = given is None or key.rpartition(".")[0] in norms
            found[key] = own if kept else given
        body.load_state_dict(found)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """A detector is no classifier."""
        raise TypeError(f"{self.name} is a detector and has no embedding")

    def _pixels(self, batch: DetectionBatch) -> Tensor:
        """The normalised images; 0 where no image is, as torchvision fills up."""
        images = batch.images
        if self.input_mean is not None and self.input_std is not None:
            images = (images - self.input_mean) / self.input_std
        outside = batch.outside()
        return images if outside is None else images.masked_fill(outside, 0.0)

    @contextmanager
    def _taps(self, wanted: bool) -> Iterator[list[Tensor]]:
        """The maps before the last ReLU of each stage, filled while the body runs."""
        found: dict[str, Tensor] = {}
        body = self.backbone.get_submodule("body")
        hooks = [_hooked(body, name, found) for name in self.tapped] if wanted else []
        taps: list[Tensor] = []
        try:
            yield taps
            taps += [found[name] for name in self.tapped] if wanted else []
        finally:
            for hook in hooks:
                hook.remove()


def _hooked(body: nn.Module, name: str, found: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
    module = body.get_submodule(name)
    if isinstance(module, nn.ReLU):
        # It may run several times in a pass: the last is the one at the end. It works in place, hence the copy.
        def before(_: nn.Module, inputs: tuple[Tensor]) -> None:
            found[name] = inputs[0].clone()

        return module.register_forward_pre_hook(before)

    def after(_: nn.Module, __: object, output: Tensor) -> None:
        found[name] = output

    return module.register_forward_hook(after)


def grid_anchors(generator: nn.Module, images: ImageList, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The anchors of each level (h * w * a, 4), which are the same for all images."""
    whole: Tensor = generator(images, list(levels))[0]
    counts: Sequence[int] = generator.num_anchors_per_location()  # type: ignore[operator]
    sizes = [level.shape[-2] * level.shape[-1] * count for level, count in zip(levels, counts, strict=True)]
    return torch.split(whole, sizes)
