"""ShuffleNet with 3 groups: Zhang et al., "ShuffleNet" (CVPR 2018).

As in the CRD benchmark, which differs from the paper: the stem is a 1x1 convolution of stride 1 without a pool, for
32x32 images; a ReLU follows the depthwise convolution; the first block of a stage puts its branch before the pooled
shortcut. Layers start from torch's defaults.

Taps: the stem after its ReLU; three stages after the ReLU that follows the addition or concatenation; preacts are the
maps before that ReLU.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, shuffle
from kdtable.models.staged import Staged

STEM = 24
GROUPS = 3
BLOCKS = (4, 8, 4)


class Block(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; the ReLU after the junction is the caller's.

    A stride of 2 concatenates the average-pooled input; ``channels`` then counts the branch alone.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        width = channels // 4
        # the stem's 24 channels are too few to group
        self.groups = 1 if in_channels == STEM else GROUPS
        self.stride = stride
        self.conv1 = conv(in_channels, width, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, channels, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to itself, or for stride 2 to (N, channels + C, H / 2, W / 2), before the ReLU."""
        branch: Tensor = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        branch = F.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        if self.stride == 1:
            return branch + x
        return torch.cat((branch, F.avg_pool2d(x, 3, stride=2, padding=1)), 1)


class ShuffleV1(Staged):
    """Stages of 4, 8 and 4 blocks with 240, 480 and 960 channels."""

    head: ClassVar = ("linear",)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, 240, BLOCKS[0])
        self.layer2 = _stage(240, 480, BLOCKS[1])
        self.layer3 = _stage(480, 960, BLOCKS[2])
        self.linear = nn.Linear(960, num_classes)
        self.norms = tuple(f"layer{stage}.{count - 1}.bn3" for stage, count in enumerate(BLOCKS, 1))


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = Block(in_channels, channels - in_channels, 2)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))
