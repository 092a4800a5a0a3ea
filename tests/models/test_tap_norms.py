"""The batch norm in front of each tap."""

import pytest
import torch
from torch import Tensor, nn

from kdtable.models import build
from kdtable.models.network import Network
from tests.models.test_networks import EVERY, images, images_for, seeded

#: One network of each family, and how its batch norms are called.
NAMES = {
    "resnet20": ("layer1.2.bn2", "layer2.2.bn2", "layer3.2.bn2"),
    "resnet20_a": ("layer1.2.bn2", "layer2.2.bn2", "layer3.2.bn2"),
    "cifar_resnet50": ("layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"),
    "wrn_16_1": ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"),
    "wrn_28_2": ("layer2.0.bn1", "layer3.0.bn1", "bn1"),
    "vgg11": ("block1.1", "block2.4", "block3.4", "block4.4"),
    "MobileNetV2": ("blocks.1.1.conv.7", "blocks.2.2.conv.7", "blocks.4.2.conv.7", "blocks.6.0.conv.7"),
    "ShuffleV1": ("layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"),
    "ShuffleV2": ("layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"),
    "wide_resnet34": ("layer1.2.bn2", "layer2.3.bn2", "layer3.5.bn2", "layer4.2.bn2"),
    "dih_vgg11": ("blocks.0.1", "blocks.1.1", "blocks.2.1", "blocks.7.1"),
    "tv_resnet18": ("layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2", "layer4.1.bn2"),
    "tv_resnet50": ("layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"),
    "tv_mobilenetv2": ("features.3.conv.3", "features.6.conv.3", "features.13.conv.3", "features.17.conv.3"),
    "tv_shufflenetv2": ("conv1.1", "stage2.3.branch2.6", "stage3.7.branch2.6", "stage4.3.branch2.6"),
    "mobilenetv1": ("blocks.2.bn2", "blocks.4.bn2", "blocks.10.bn2", "blocks.12.bn2"),
    "mgd_mobilenetv2": ("features.4.conv.1.1", "features.7.conv.1.1", "features.11.conv.1.1", "features.17.conv.1.1"),
}
#: Networks whose taps lie right behind a batch norm, or behind the sum of one and the last block's input.
DIRECT = ("wrn_16_1", "wrn_28_2", "vgg8", "mobilenetv1", "mgd_mobilenetv2")
SUMMED = {
    "resnet20": [f"layer{i}.2" for i in (1, 2, 3)],
    "resnet20_a": [f"layer{i}.2" for i in (1, 2, 3)],
    "ShuffleV1": ["layer1.3", "layer2.7", "layer3.3"],
    "tv_resnet18": [f"layer{i}.1.conv1" for i in (1, 2, 3, 4)],
    "tv_mobilenetv2": ["features.3.conv.0.0", "features.6.conv.0.0", "features.13.conv.0.0"],
}
HALVES = {"ShuffleV2", "tv_shufflenetv2"}


@pytest.mark.parametrize("name", NAMES)
def test_by_name(name: str) -> None:
    network = build(name, 10)
    assert network.tap_norms() == tuple(network.get_submodule(norm) for norm in NAMES[name])


@pytest.mark.parametrize("name", EVERY)
def test_every_tap_of_every_network_has_one_with_its_channels(name: str) -> None:
    network = seeded(name).eval()
    with torch.no_grad():
        preacts = network(images_for(name), frozenset({"preacts"})).preacts
    found = []
    for norm in network.tap_norms():
        assert norm is not None
        found.append(norm.num_features)
    channels = [preact.shape[1] for preact in preacts]
    if name in HALVES:
        channels = [count if count == 24 else count // 2 for count in channels]
    assert found == channels


def outputs_of_norms(network: Network, x: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    seen: list[Tensor] = []
    for norm in network.tap_norms():
        assert norm is not None
        norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    return seen, network(x).preacts


@pytest.mark.parametrize("name", DIRECT)
def test_a_preact_without_shortcut_is_its_batch_norms_output(name: str) -> None:
    normed, preacts = outputs_of_norms(seeded(name).train(), images())
    assert all(torch.equal(a, b) for a, b in zip(normed, preacts, strict=True))


@pytest.mark.parametrize("name", SUMMED)
def test_a_preact_is_the_sum_of_its_batch_norms_output_and_the_blocks_input(name: str) -> None:
    network = seeded(name).train()
    shortcuts: list[Tensor] = []
    for block in SUMMED[name]:
        network.get_submodule(block).register_forward_pre_hook(lambda _module, inputs: shortcuts.append(inputs[0]))
    normed, preacts = outputs_of_norms(network, images())
    for norm, shortcut, preact in zip(normed, shortcuts, preacts, strict=False):
        assert torch.equal(norm + shortcut, preact)


@pytest.mark.parametrize("name", ["resnet8+heads", "wrn_28_2+tofd"])
def test_of_a_network_with_classifiers_they_are_the_backbones(name: str) -> None:
    network = seeded(name)
    assert network.tap_norms() == network.backbone.tap_norms()
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in network.tap_norms())
