"""torchvision's weights for ImageNet, with torchvision's own URLs, checksums and accuracies.

These are the ``IMAGENET1K_V1`` files. Papers before August 2021 used earlier uploads, in parentheses:
resnet18-f37072fd (resnet18-5c106cde), resnet34-b627a593 (resnet34-333f7ec4), resnet50-0676ba61
(resnet50-19c8e357), resnet101-63fe2227 (resnet101-5d3b4d8f), resnet152-394f9c45 (resnet152-b121ed2d). For ResNet-34 and
ResNet-50 the documented accuracies of both uploads differ by at most 0.02 points. The files of MobileNetV2 and
ShuffleNetV2 have kept their names.

Imports torchvision on the first call only.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

#: torchvision's enum of each network's weights. The last two networks use other networks' weights.
_ENUMS: Final = {
    "tv_resnet18": "ResNet18_Weights",
    "tv_resnet34": "ResNet34_Weights",
    "tv_resnet50": "ResNet50_Weights",
    "tv_resnet101": "ResNet101_Weights",
    "tv_resnet152": "ResNet152_Weights",
    "tv_mobilenetv2": "MobileNet_V2_Weights",
    "tv_shufflenetv2": "ShuffleNet_V2_X1_0_Weights",
    "mgd_mobilenetv2": "MobileNet_V2_Weights",
    "mgd_shufflenetv2": "ShuffleNet_V2_X1_0_Weights",
}

NETWORKS: Final = tuple(_ENUMS)


@dataclass(frozen=True, slots=True)
class HubWeights:
    """One of torchvision's weight files.

    Attributes:
        url: of the file.
        sha256: first hex digits of its checksum, which end its name.
        top1: accuracy of torchvision's network on ImageNet's validation images, percent.
        top5: top-5 accuracy of the same.
        parameters: number of parameters.
    """

    url: str
    sha256: str
    top1: float
    top5: float
    parameters: int


def hub_weights(network: str) -> HubWeights | None:
    """torchvision's weights for a network's canonical name; ``None`` if it has none."""
    if network not in _ENUMS:
        return None
    from torchvision import models

    weights: Any = getattr(models, _ENUMS[network]).IMAGENET1K_V1
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]
    return HubWeights(
        url=weights.url,
        sha256=_checksum(weights.url),
        top1=accuracy["acc@1"],
        top5=accuracy["acc@5"],
        parameters=weights.meta["num_params"],
    )


def _checksum(url: str) -> str:
    # torch.hub's rule: NAME-DIGITS.EXT
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    if match is None:
        raise ValueError(f"the file of {url} has no checksum in its name")
    return match[1]
