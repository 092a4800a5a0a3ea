"""ShuffleNetV2 of size 1: Ma et al., "ShuffleNet V2" (ECCV 2018).

As in the CRD benchmark, which differs from the paper: the stem is a 1x1 convolution of stride 1 without a pool, for
32x32 images. Layers start from torch's defaults.

Taps: the stem after its ReLU; three stages after the last block's shuffle. A preact is that block's [untouched half,
batch norm before the ReLU] before the shuffle: its channels are in another order than the stage's, and its first half
is already rectified.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, pool, shuffle
from kdtable.models.network import Hold, Network

STEM = 24
HEAD = 1024
BLOCKS = (4, 8, 4)


class BasicBlock(nn.Module):
    """Pass on the first half of the channels and transform the second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The finished left half and the right half before its ReLU, each (N, C / 2, H, W)."""
        left, right = x.chunk(2, dim=1)
        right = F.relu(self.bn1(self.conv1(right)))
        right = self.bn2(self.conv2(right))
        return left, self.bn3(self.conv3(right))


class DownBlock(nn.Module):
    """Halve the size; both branches read all channels."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(in_channels, in_channels, 3, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The finished left half and the right half before its ReLU, each (N, channels / 2, H / 2, W / 2)."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        return left, self.bn5(self.conv5(right))


class ShuffleV2(Network):
    """Stages of 4, 8 and 4 blocks with 116, 232 and 464 channels."""

    head: ClassVar = ("conv2", "bn2", "linear")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, 116, BLOCKS[0])
        self.layer2 = _stage(116, 232, BLOCKS[1])
        self.layer3 = _stage(232, 464, BLOCKS[2])
        self.conv2 = conv(464, HEAD, 1)
        self.bn2 = nn.BatchNorm2d(HEAD)
        self.linear = nn.Linear(HEAD, num_classes)
        self.norms = tuple(f"layer{stage}.{count - 1}.bn3" for stage, count in enumerate(BLOCKS, 1))

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        x = F.relu(self.bn1(self.conv1(x)))
        hold.stem(x)
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                left, right = block(x)
                x = shuffle(torch.cat((left, F.relu(right)), 1), 2)
            hold.preact(torch.cat((left, right), 1))
            hold.stage(x)
        return pool(hold.last(F.relu(self.bn2(self.conv2(x)))))


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = DownBlock(in_channels, channels)
    return nn.Sequential(first, *(BasicBlock(channels) for _ in range(blocks - 1)))
