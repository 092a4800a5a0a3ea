"""Faster R-CNN with an FPN, from torchvision's modules (Ren et al. 2015; Lin et al. 2017)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork

from kdtable.models.detection.batch import DetectionBatch, Size
from kdtable.models.detection.detector import Detector, grid_anchors
from kdtable.models.detection.outputs import Detections, DetectorOutputs
from kdtable.models.detection.sampling import SeededSampler


class FasterRCNNDetector(Detector):
    """The backbone, the RPN and the RoI heads of a torchvision ``FasterRCNN``; class 0 is the background.

    Args:
        source: whose modules it takes; its transform is not used.
        tapped: see the base class.
    """

    rpn: RegionProposalNetwork
    roi_heads: RoIHeads

    def __init__(self, source: FasterRCNN, tapped: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = source.backbone, source.rpn, source.roi_heads
        self.tapped = tapped
        self.rpn.fg_bg_sampler = SeededSampler(self.rpn.fg_bg_sampler, "anchors")
        self.roi_heads.fg_bg_sampler = SeededSampler(self.roi_heads.fg_bg_sampler, "proposals")

    def judged(
        self, images: ImageList, maps: Mapping[str, Tensor], batch: DetectionBatch, keep: frozenset[str]
    ) -> DetectorOutputs:
        """See the base class."""
        anchors = grid_anchors(self.rpn.anchor_generator, images, list(maps.values())) if "anchors" in keep else ()
        if self.training:
            return self._trained(images, maps, batch, anchors)
        if "detections" not in keep:
            return DetectorOutputs(dense=False, anchors=anchors)
        proposals, _ = self.rpn(images, maps)
        found, _ = self.roi_heads(maps, proposals, images.image_sizes)
        detections = (Detections(one["boxes"], one["scores"], one["labels"] - 1) for one in found)
        return DetectorOutputs(dense=False, anchors=anchors, detections=tuple(detections))

    def _trained(
        self, images: ImageList, maps: Mapping[str, Tensor], batch: DetectionBatch, anchors: tuple[Tensor, ...]
    ) -> DetectorOutputs:
        """The losses of RPN and heads, and the sampled proposals with their logits and assigned classes."""
        for sampler in (self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler):
            sampler.begin(batch.draws)
        pairs = zip(batch.boxes, batch.labels, strict=True)
        targets = [{"boxes": boxes, "labels": labels + 1} for boxes, labels in pairs]
        proposals, losses = self.rpn(images, maps, targets)
        boxes, _, labels, regression = self.roi_heads.select_training_samples(proposals, targets)
        logits, deltas = self._heads(maps, boxes, images.image_sizes)
        class_loss, box_loss = fastrcnn_loss(logits, deltas, labels, regression)
        return DetectorOutputs(
            dense=False,
            losses={
                "objectness": losses["loss_objectness"],
                "rpn_box": losses["loss_rpn_box_reg"],
                "class": class_loss,
                "box": box_loss,
            },
            class_logits=logits,
            labels=torch.cat(labels),
            boxes=tuple(boxes),
            anchors=anchors,
        )

    def _heads(
        self, maps: Mapping[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[Size]
    ) -> tuple[Tensor, Tensor]:
        heads = self.roi_heads
        features = heads.box_head(heads.box_roi_pool(maps, list(boxes), list(sizes)))
        logits, deltas = heads.box_predictor(features)
        return logits, deltas

    def judge(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
        """The class logits (R, classes + 1) of given boxes (n, 4) of each image, from this network's own maps."""
        names = (*map(str, range(len(levels) - 1)), "pool")
        logits, _ = self._heads(dict(zip(names, levels, strict=True)), boxes, sizes)
        return logits

    def shapes(self, levels: tuple[Tensor, ...], taps: tuple[Tensor, ...]) -> DetectorOutputs:
        """See the base class."""
        logits = levels[0].new_empty(0, self.roi_heads.box_predictor.cls_score.out_features)
        return DetectorOutputs(dense=False, levels=levels, taps=taps, class_logits=logits)
