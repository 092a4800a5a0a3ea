"""Detectors that learn on small images in seconds on a CPU.

The body is a convolution and two basic blocks, all of stride 2 and with group norms. The FPN is 32 wide and has levels
of strides 4, 8 and 16.
"""

from collections import OrderedDict
from typing import Final

from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import BasicBlock
from torchvision.ops import MultiScaleRoIAlign

from kdtable.models.detection.faster_rcnn import FasterRCNNDetector
from kdtable.models.detection.retinanet import RetinaNetDetector

#: Width of the FPN, and of the hidden layers of the RoI heads.
WIDTH: Final = 32
HIDDEN: Final = 128
#: Groups of each norm.
GROUPS: Final = 8
RATIOS: Final = (0.5, 1.0, 2.0)
_TAPPED: Final = ("layer1.0.relu", "layer2.0.relu")


def faster_rcnn(num_classes: int, width: int) -> FasterRCNNDetector:
    """Faster R-CNN on a body whose blocks are ``width`` and twice as wide; samples 64 proposals of an image."""
    sizes = ((12,), (24,), (48,))
    source = FasterRCNN(
        _backbone(width),
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(WIDTH * 49, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, num_classes + 1),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
    )
    return FasterRCNNDetector(source, _TAPPED)


def retinanet(num_classes: int, width: int) -> RetinaNetDetector:
    """RetinaNet on the same body; its head has group norms and He's initialisation, without which it learns slowly."""
    sizes = tuple((size, round(1.4 * size)) for size in (16, 32, 64))
    anchors = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
    head = RetinaNetHead(WIDTH, anchors.num_anchors_per_location()[0], num_classes, norm_layer=_norm)
    for branch in (head.classification_head, head.regression_head):
        for layer in branch.conv.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    source = RetinaNet(_backbone(width), num_classes, anchor_generator=anchors, head=head, detections_per_img=100)
    return RetinaNetDetector(source, _TAPPED)


def _backbone(width: int) -> BackboneWithFPN:
    stem = OrderedDict(
        conv1=nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), bn1=_norm(width), relu=nn.ReLU(inplace=True)
    )
    blocks = {"layer1": _block(width, width), "layer2": _block(width, 2 * width)}
    body = nn.Sequential(OrderedDict(**stem, **blocks))
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return BackboneWithFPN(body, {"layer1": "0", "layer2": "1"}, [width, 2 * width], WIDTH)


def _block(before: int, width: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=2, bias=False), _norm(width))
    return nn.Sequential(BasicBlock(before, width, stride=2, downsample=shortcut, norm_layer=_norm))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
