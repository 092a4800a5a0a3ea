"""CIFAR ResNets: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2.

As in the CRD benchmark, which differs from the paper: a shortcut that changes shape is a 1x1 convolution with batch
norm (the paper pads with zeros, see ``resnet_a``). "x4" networks have a stem of 32 and stages of 64, 128 and 256
channels, so that their first stage projects too.

Taps: the stem after its ReLU; three stages after the ReLU that follows the addition; preacts are those sums.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, init_convolutions, stage_of
from kdtable.models.staged import Staged


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the ReLU after the sum is the caller's."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        changes_shape = stride != 1 or in_channels != channels
        self.downsample = self.shortcut(in_channels, channels, stride) if changes_shape else None

    def shortcut(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        """A shortcut that changes the shape."""
        return nn.Sequential(conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H / stride, W / stride), before the ReLU."""
        branch: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return branch + (x if self.downsample is None else self.downsample(x))


class ResNet(Staged):
    """A network of ``depth`` 6n + 2 whose stem and stages have ``widths`` channels."""

    head: ClassVar = ("fc",)

    def __init__(self, num_classes: int, depth: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = conv(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage_of(BasicBlock, stem, first, 1, blocks)
        self.layer2 = stage_of(BasicBlock, first, second, 2, blocks)
        self.layer3 = stage_of(BasicBlock, second, third, 2, blocks)
        self.fc = nn.Linear(third, num_classes)
        self.norms = tuple(f"layer{stage}.{blocks - 1}.bn2" for stage in (1, 2, 3))
        init_convolutions(self)
