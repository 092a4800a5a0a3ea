"""ResNet-50 for 32x32 images: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), table 1.

As in the CRD benchmark, which calls it ``ResNet50``. Unlike the paper's network for ImageNet, the stem is a 3x3
convolution of stride 1 without a max pool, so that 32x32 images reach the classifier as 4x4 maps. A bottleneck's stride
is in its 3x3 convolution.

Taps: the stem after its ReLU; four stages after the ReLU that follows the addition; preacts are those sums.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, init_convolutions, pool, run_stages
from kdtable.models.network import Hold, Network

EXPANSION = 4
BLOCKS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the ReLU after the sum is the caller's."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = EXPANSION * width
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
        """(N, C, H, W) to (N, 4 width, H / stride, W / stride), before the ReLU."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        summed: Tensor = self.bn3(self.conv3(branch)) + self.shortcut(x)
        return summed


class CifarResNet50(Network):
    """Bottlenecks (3, 4, 6, 3) of widths 64, 128, 256 and 512."""

    head: ClassVar = ("linear",)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 1, BLOCKS[0])
        self.layer2 = _stage(256, 128, 2, BLOCKS[1])
        self.layer3 = _stage(512, 256, 2, BLOCKS[2])
        self.layer4 = _stage(1024, 512, 2, BLOCKS[3])
        self.linear = nn.Linear(2048, num_classes)
        self.norms = tuple(f"layer{stage}.{count - 1}.bn3" for stage, count in enumerate(BLOCKS, 1))
        init_convolutions(self)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        x = F.relu(self.bn1(self.conv1(x)))
        hold.stem(x)
        return pool(hold.last(run_stages((self.layer1, self.layer2, self.layer3, self.layer4), x, hold)))


def _stage(in_channels: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    first = Bottleneck(in_channels, width, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1)))
