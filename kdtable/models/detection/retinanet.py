"""RetinaNet with an FPN, from torchvision's modules (Lin et al. 2017)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.detector import Detector, grid_anchors
from kdtable.models.detection.outputs import Detections, DetectorOutputs


class RetinaNetDetector(Detector):
    """The backbone and the head of a torchvision ``RetinaNet``; classes count from 0, without a background.

    Args:
        source: whose modules and settings it takes; its transform is not used.
        tapped: see the base class.
    """

    def __init__(self, source: RetinaNet, tapped: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone, self.anchor_generator = source.backbone, source.anchor_generator
        self._modules["head"] = source.head
        self.tapped = tapped
        self._source = (source,)  # in a tuple, so that its modules are not registered twice

    @property
    def head(self) -> Any:  # type: ignore[override]
        """torchvision's head, by which its parameters are named; on a classifier the word means something else."""
        return self._modules["head"]

    def judged(
        self, images: ImageList, maps: Mapping[str, Tensor], batch: DetectionBatch, keep: frozenset[str]
    ) -> DetectorOutputs:
        """See the base class; the head runs in eval mode only where its logits or detections are kept."""
        levels = list(maps.values())
        wanted = self.training or keep & {"class_logits", "detections"}
        head: dict[str, Tensor] = self.head(levels) if wanted else {}
        anchors = grid_anchors(self.anchor_generator, images, levels) if self.training or keep else ()
        found = DetectorOutputs(
            dense=True,
            class_logits=head.get("cls_logits"),
            anchors=anchors if "anchors" in keep else (),
        )
        if self.training:
            return self._trained(found, head, torch.cat(anchors), batch)
        if "detections" not in keep:
            return found
        return self._measured(found, head, anchors, images)

    def _trained(
        self, found: DetectorOutputs, head: dict[str, Tensor], anchors: Tensor, batch: DetectionBatch
    ) -> DetectorOutputs:
        matched = [self._matched(boxes, anchors) for boxes in batch.boxes]
        pairs = zip(batch.boxes, batch.labels, strict=True)
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]
        losses = self.head.compute_loss(targets, head, [anchors] * len(targets), matched)
        background = head["cls_logits"].shape[-1]
        assigned = [_labels(one, labels, background) for one, labels in zip(matched, batch.labels, strict=True)]
        named = {"class": losses["classification"], "box": losses["bbox_regression"]}
        return DetectorOutputs(
            dense=True,
            losses=named,
            class_logits=found.class_logits,
            labels=torch.stack(assigned),
            anchors=found.anchors,
        )

    def _matched(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(A,) int64: each anchor's box; -1 for the background, -2 if it is ignored."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        found: Tensor = self._source[0].proposal_matcher(box_iou(boxes, anchors))
        return found

    def _measured(
        self, found: DetectorOutputs, head: dict[str, Tensor], anchors: Sequence[Tensor], images: ImageList
    ) -> DetectorOutputs:
        counts = [len(level) for level in anchors]
        divided = {name: list(torch.split(tensor, counts, dim=1)) for name, tensor in head.items()}
        sizes = images.image_sizes
        results = self._source[0].postprocess_detections(divided, [list(anchors)] * len(sizes), sizes)
        detections = (Detections(one["boxes"], one["scores"], one["labels"]) for one in results)
        return DetectorOutputs(
            dense=True, class_logits=found.class_logits, anchors=found.anchors, detections=tuple(detections)
        )

    def shapes(self, levels: tuple[Tensor, ...], taps: tuple[Tensor, ...]) -> DetectorOutputs:
        """See the base class."""
        logits = self.head(list(levels))["cls_logits"]
        return DetectorOutputs(dense=True, levels=levels, taps=taps, class_logits=logits)


def _labels(matched: Tensor, labels: Tensor, background: int) -> Tensor:
    """The class of each anchor's box: ``background`` for none, -1 if the anchor is ignored."""
    own = labels[matched.clamp(min=0)] if len(labels) else torch.full_like(matched, background)
    assigned = torch.where(matched >= 0, own, torch.full_like(matched, background))
    return torch.where(matched == -2, torch.full_like(matched, -1), assigned)
