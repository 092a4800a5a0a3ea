"""MobileNet: Howard et al., "MobileNets" (arXiv 1704.04861), table 1, of width 1.

A 3x3 convolution of stride 2; thirteen blocks of a depthwise 3x3 and a 1x1 convolution, each with batch norm and ReLU;
the global average and a linear layer. Convolutions start from Kaiming's normal (fan out), the classifier from torch's
default.

Taps: the stem after its ReLU; the last block of 128, 256, 512 and 1024 channels after its ReLU, at strides 4, 8, 16 and
32; preacts are these blocks' last batch norms.
"""

from typing import ClassVar, Final

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, init_convolutions, pool
from kdtable.models.network import Hold, Network

STEM: Final = 32
#: Channels and stride of each block.
BLOCKS: Final = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
TAPPED: Final = (2, 4, 10, 12)


class Separable(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution; the ReLU behind the second is the caller's."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, in_channels, 3, stride, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H / stride, W / stride), before the ReLU."""
        normed: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return normed


class MobileNetV1(Network):
    """MobileNet for images of 224x224."""

    head: ClassVar = ("fc",)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, STEM, 3, 2)
        self.bn1 = nn.BatchNorm2d(STEM)
        before = (STEM, *(channels for channels, _ in BLOCKS))
        self.blocks = nn.ModuleList(
            Separable(in_channels, channels, stride)
            for in_channels, (channels, stride) in zip(before, BLOCKS, strict=False)
        )
        self.fc = nn.Linear(BLOCKS[-1][0], num_classes)
        self.norms = tuple(f"blocks.{index}.bn2" for index in TAPPED)
        init_convolutions(self)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        x = F.relu(self.bn1(self.conv1(x)))
        hold.stem(x)
        for index, block in enumerate(self.blocks):
            normed = block(x)
            x = F.relu(normed)
            if index in TAPPED:
                hold.preact(normed)
                hold.stage(x)
        return pool(hold.last(x))
