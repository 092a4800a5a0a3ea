"""ResNet-50 for 32x32 images: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), table 1.

As in the CRD benchmark, which calls it ``ResNet50``. Unlike the paper's network for ImageNet, the stem is a 3x3
convolution of stride 1 without a max pool, so that 32x32 images reach the classifier as 4x4 maps. A bottleneck's stride
is in its 3x3 convolution.

Taps: the stem after its ReLU; four stages after the ReLU that follows the addition; preacts are those sums.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, init_convolutions, stage_of
from kdtable.models.staged import Staged

EXPANSION = 4
BLOCKS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the ReLU after the sum is the caller's."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        width = channels // EXPANSION
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H / stride, W / stride), before the ReLU."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        summed: Tensor = self.bn3(self.conv3(branch)) + self.shortcut(x)
        return summed


class CifarResNet50(Staged):
    """Bottlenecks (3, 4, 6, 3) of widths 64, 128, 256 and 512, a quarter of their channels."""

    head: ClassVar = ("linear",)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage_of(Bottleneck, 64, 256, 1, BLOCKS[0])
        self.layer2 = stage_of(Bottleneck, 256, 512, 2, BLOCKS[1])
        self.layer3 = stage_of(Bottleneck, 512, 1024, 2, BLOCKS[2])
        self.layer4 = stage_of(Bottleneck, 1024, 2048, 2, BLOCKS[3])
        self.linear = nn.Linear(2048, num_classes)
        self.norms = tuple(f"layer{stage}.{count - 1}.bn3" for stage, count in enumerate(BLOCKS, 1))
        init_convolutions(self)
