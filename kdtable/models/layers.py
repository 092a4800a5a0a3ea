"""Layers and initialisers that several families share."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size; ``kernel`` must be odd."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal parts of x (N, C, H, W): ShuffleNet, section 3.1."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def pool(x: Tensor) -> Tensor:
    """Global average: (N, C, H, W) to (N, C)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def stage_of(
    block: Callable[[int, int, int], nn.Module], in_channels: int, channels: int, stride: int, count: int
) -> nn.Sequential:
    """``count`` blocks of ``channels``, made by ``block(in_channels, channels, stride)``; the first has the stride."""
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels, channels, 1) for _ in range(count - 1)))


def init_convolutions(network: nn.Module) -> None:
    """Draw kernels from a normal of variance 2 / (k k C_out), grouped or not; set biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linear(network: nn.Module) -> None:
    """Draw the weights of linear layers from a normal of deviation 0.01; set biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
