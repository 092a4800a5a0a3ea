"""The manifest's files of torchvision are those that torchvision names."""

import re

import pytest
import torchvision

from kdtable import models
from kdtable.models.names import weights_of
from kdtable.teachers.manifest import lookup

ENUMS = {
    "tv_resnet18": "ResNet18_Weights",
    "tv_resnet34": "ResNet34_Weights",
    "tv_resnet50": "ResNet50_Weights",
    "tv_resnet101": "ResNet101_Weights",
    "tv_resnet152": "ResNet152_Weights",
    "tv_mobilenetv2": "MobileNet_V2_Weights",
    "tv_shufflenetv2": "ShuffleNet_V2_X1_0_Weights",
}


@pytest.mark.parametrize("network", ENUMS)
def test_the_manifest_says_what_torchvision_says(network: str) -> None:
    hub, entry = getattr(torchvision.models, ENUMS[network]).IMAGENET1K_V1, lookup("imagenet", network)
    assert entry is not None
    (source,) = entry.sources
    assert (source.url, entry.claimed_top1) == (hub.url, hub.meta["_metrics"]["ImageNet-1K"]["acc@1"])
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", hub.url)  # torch.hub's rule: NAME-DIGITS.EXT
    assert digits is not None
    assert entry.sha256 == digits[1]


@pytest.mark.parametrize("network", ["tv_mobilenetv2", "tv_shufflenetv2", "mgd_mobilenetv2", "mgd_shufflenetv2"])
def test_the_weights_are_of_as_many_parameters_as_the_network(network: str) -> None:
    hub = getattr(torchvision.models, ENUMS[weights_of(network)]).IMAGENET1K_V1
    assert sum(p.numel() for p in models.build(network, 1000).parameters()) == hub.meta["num_params"]
