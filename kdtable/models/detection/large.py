"""torchvision's detectors on ResNets and MobileNetV2, with FPNs of 256 channels.

By default they are as detectors are fine-tuned from ImageNet's weights: all batch norms are constants, and of a ResNet
the stem and the first stage too. Where ``scratch``, all is trained, with batch norms, from random weights.
"""

from collections.abc import Callable
from typing import Final

from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from kdtable.models.detection.faster_rcnn import FasterRCNNDetector
from kdtable.models.detection.retinanet import RetinaNetDetector

#: Channels of the FPN's levels.
WIDTH: Final = 256
#: MobileNetV2's layers at strides 4, 8, 16 and 32, and their widths: those of 24, 32, 96 and 320 channels.
MOBILE: Final = {"3": 24, "6": 32, "13": 96, "17": 320}
#: Blocks of each stage.
BLOCKS: Final = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
#: Trained stages of a ResNet, from the last; 5 trains the stem too.
_TRAINED: Final = 3
#: Groups of the norms of `with_group_norms`.
_GROUPS: Final = 32


def faster_rcnn(num_classes: int, body: str, scratch: bool = False) -> FasterRCNNDetector:
    """Faster R-CNN with torchvision's settings; levels P2 to P6."""
    backbone = _mobile(scratch) if body == "mobilenetv2" else _resnet(body, scratch)
    tapped = tuple(MOBILE) if body == "mobilenetv2" else _ends(body)
    return FasterRCNNDetector(FasterRCNN(backbone, num_classes + 1), tapped)


def retinanet(num_classes: int, body: str, scratch: bool = False, groups: bool = False) -> RetinaNetDetector:
    """RetinaNet with torchvision's settings; levels P3 to P7.

    ``groups`` makes the student of Matching Guided Distillation: its first stage is trained, and both norms in the last
    block of each stage are group norms.
    """
    levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(WIDTH, WIDTH)}
    backbone = _resnet(body, scratch, _TRAINED + groups, **levels)
    if groups:
        with_group_norms(backbone.body, body)
    return RetinaNetDetector(RetinaNet(backbone, num_classes), _ends(body))


def _resnet(body: str, scratch: bool, trained: int = _TRAINED, **levels: object) -> BackboneWithFPN:
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d if scratch else FrozenBatchNorm2d
    count = 5 if scratch else trained
    return resnet_fpn_backbone(backbone_name=body, weights=None, norm_layer=norm, trainable_layers=count, **levels)


def _mobile(scratch: bool) -> BackboneWithFPN:
    norm = nn.BatchNorm2d if scratch else FrozenBatchNorm2d
    features = mobilenet_v2(weights=None, norm_layer=norm).features
    layers = {name: str(number) for number, name in enumerate(MOBILE)}
    return BackboneWithFPN(features, layers, list(MOBILE.values()), WIDTH)


def _ends(body: str) -> tuple[str, ...]:
    """The ReLUs at the ends of a ResNet's stages."""
    return tuple(f"layer{stage}.{count - 1}.relu" for stage, count in enumerate(BLOCKS[body], start=1))


def with_group_norms(layers: nn.Module, body: str) -> None:
    """Make the norms of the last block of each of a ResNet's stages group norms, which are trained."""
    for stage, count in enumerate(BLOCKS[body], start=1):
        block = layers.get_submodule(f"layer{stage}.{count - 1}")
        norms = {name: one for name, one in block.named_children() if isinstance(one, FrozenBatchNorm2d)}
        for name, one in norms.items():
            block.set_submodule(name, nn.GroupNorm(_GROUPS, len(one.weight)))
