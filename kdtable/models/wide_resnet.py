"""ResNet-18 and ResNet-34 for small images: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016).

As in the DIH repository, which calls them "massive" to tell them from the 16-32-64 networks (``resnet``). They follow
table 1 of the paper, but the stem is a 3x3 convolution of stride 1 without a max pool, and a shortcut that changes
shape is a 1x1 convolution with batch norm. Layers start from torch's defaults. The repository averages 4x4 windows, the
whole last map of a 32x32 image; here the average is global, so that larger images have the same classifier.

Taps: the stem after its ReLU; four stages after the ReLU that follows the addition; preacts are those sums.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, stage_of
from kdtable.models.staged import Staged


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the ReLU after the sum is the caller's."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H / stride, W / stride), before the ReLU."""
        branch: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        summed: Tensor = branch + self.shortcut(x)
        return summed


class MassiveResNet(Staged):
    """Stages of 64, 128, 256 and 512 channels with ``blocks[i]`` blocks in the i-th."""

    head: ClassVar = ("linear",)

    def __init__(self, num_classes: int, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage_of(BasicBlock, 64, 64, 1, blocks[0])
        self.layer2 = stage_of(BasicBlock, 64, 128, 2, blocks[1])
        self.layer3 = stage_of(BasicBlock, 128, 256, 2, blocks[2])
        self.layer4 = stage_of(BasicBlock, 256, 512, 2, blocks[3])
        self.linear = nn.Linear(512, num_classes)
        self.norms = tuple(f"layer{stage}.{count - 1}.bn2" for stage, count in enumerate(blocks, 1))
