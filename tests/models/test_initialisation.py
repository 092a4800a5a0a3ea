"""How each family starts: as in the benchmark's and the DIH repository's code, and Kaiming's normal for option A."""

import math

import pytest
import torch
from torch import Tensor, nn

from kdtable.models import build
from kdtable.models.network import Network

FAN_OUT = ["resnet20", "resnet8x4", "cifar_resnet50", "wrn_16_2", "vgg8", "MobileNetV2", "mobilenetv1"]
DEFAULTS = ["ShuffleV1", "ShuffleV2", "wide_resnet18", "dih_vgg11", "wrn_28_2"]
EVERY_FAMILY = [*FAN_OUT, *DEFAULTS, "resnet20_a"]


def seeded(name: str) -> Network:
    torch.manual_seed(0)
    return build(name, 100)


def kernels(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def classifier(network: Network) -> nn.Linear:
    (linear,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    return linear


def assert_normal(values: Tensor, std: float) -> None:
    """Right deviation within five standard errors, and tails that a uniform distribution has not."""
    assert values.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * values.numel()))
    assert values.abs().max() > math.sqrt(3) * std


def assert_uniform(values: Tensor, bound: float) -> None:
    assert values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(2 * values.numel()))


@pytest.mark.parametrize("name", FAN_OUT)
def test_convolutions_by_fan_out(name: str) -> None:
    for conv in kernels(seeded(name)):
        area = conv.kernel_size[0] * conv.kernel_size[1]
        assert_normal(conv.weight, math.sqrt(2 / (area * conv.out_channels)))
        assert conv.bias is None or not conv.bias.any()


@pytest.mark.parametrize("name", DEFAULTS)
def test_convolutions_by_default(name: str) -> None:
    for conv in kernels(seeded(name)):
        assert_uniform(conv.weight, math.sqrt(1 / conv.weight[0].numel()))


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4", "cifar_resnet50", "wrn_16_2", "mobilenetv1", *DEFAULTS])
def test_classifiers_by_default(name: str) -> None:
    linear = classifier(seeded(name))
    assert_uniform(linear.weight, math.sqrt(1 / linear.in_features))
    if name == "wrn_16_2":
        assert not linear.bias.any()
    else:
        assert_uniform(linear.bias, math.sqrt(1 / linear.in_features))


def test_heads_by_default() -> None:
    for head in seeded("resnet8+heads").branches:
        layer = head.added_linear
        assert_uniform(layer.weight, math.sqrt(1 / layer.in_features))
        assert_uniform(layer.bias, math.sqrt(1 / layer.in_features))


@pytest.mark.parametrize("name", ["resnet8+tofd", "resnet20_a+tofd", "wide_resnet18+tofd"])
def test_tofd_branches_by_fan_out_and_their_classifiers_by_default(name: str) -> None:
    for branch in seeded(name).branches:
        for conv in kernels(branch):
            area = conv.kernel_size[0] * conv.kernel_size[1]
            assert_normal(conv.weight, math.sqrt(2 / (area * conv.out_channels)))
        assert_uniform(branch.fc.weight, math.sqrt(1 / branch.fc.in_features))
        assert_uniform(branch.fc.bias, math.sqrt(1 / branch.fc.in_features))


@pytest.mark.parametrize("name", ["vgg8", "MobileNetV2"])
def test_small_classifiers(name: str) -> None:
    linear = classifier(seeded(name))
    assert_normal(linear.weight, 0.01)
    assert not linear.bias.any()


def test_option_a_by_fan_in() -> None:
    network = seeded("resnet20_a")
    for layer in (*kernels(network), classifier(network)):
        assert_normal(layer.weight, math.sqrt(2 / layer.weight[0].numel()))


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_batch_norms_start_neutral(name: str) -> None:
    network = seeded(name)
    fast = [network.bn1] if name == "wrn_28_2" else []  # its final one forgets soon
    for bn in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (bn.weight == 1).all()
        assert not bn.bias.any()
        assert (bn.eps, bn.momentum) == (1e-5, 0.9 if bn in fast else 0.1)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_the_start_is_a_function_of_the_seed(name: str) -> None:
    one, other = seeded(name).state_dict(), seeded(name).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
