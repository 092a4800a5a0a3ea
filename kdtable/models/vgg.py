"""VGG with batch norm: Simonyan and Zisserman, "Very Deep Convolutional Networks" (ICLR 2015).

As in the CRD benchmark, which differs from the paper: batch norm after every convolution (which keeps its bias), one
linear layer on the global average in place of three, no pool after the last block, and a pool after the fourth block
for 64x64 images only. vgg8 is not in the paper.

Taps: the first block's output is the stem and the other four blocks' are the stages, all after the ReLU and before the
pool; preacts are the last batch norms of these four blocks.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import init_convolutions, init_linear, pool
from kdtable.models.network import Hold, Network

WIDTHS = (64, 128, 256, 512, 512)
POOLED_TWICE = 64  # height of the images that are also pooled after the fourth block


class VGG(Network):
    """Five blocks with ``convolutions[i]`` convolutions in the i-th."""

    head: ClassVar = ("classifier",)

    def __init__(self, num_classes: int, convolutions: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        self.block0 = _block(3, WIDTHS[0], convolutions[0])
        self.block1 = _block(WIDTHS[0], WIDTHS[1], convolutions[1])
        self.block2 = _block(WIDTHS[1], WIDTHS[2], convolutions[2])
        self.block3 = _block(WIDTHS[2], WIDTHS[3], convolutions[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], convolutions[4])
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        # convolution, batch norm and ReLU repeat; the last ReLU is missing
        self.norms = tuple(f"block{index}.{3 * convolutions[index] - 2}" for index in (1, 2, 3, 4))
        init_convolutions(self)
        init_linear(self)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        pool_after_block3 = x.shape[2] == POOLED_TWICE
        x = F.relu(self.block0(x))
        hold.stem(x)
        for block, pool_first in (
            (self.block1, True),
            (self.block2, True),
            (self.block3, True),
            (self.block4, pool_after_block3),
        ):
            normed = block(F.max_pool2d(x, 2) if pool_first else x)
            hold.preact(normed)
            x = F.relu(normed)
            hold.stage(x)
        return pool(hold.last(x))


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    return nn.Sequential(*_layers(in_channels, channels, convolutions))


def _layers(in_channels: int, channels: int, convolutions: int) -> Iterator[nn.Module]:
    """Pairs of convolution and batch norm with a ReLU in between; the last ReLU is the caller's."""
    for index in range(convolutions):
        if index:
            yield nn.ReLU()
        yield nn.Conv2d(channels if index else in_channels, channels, 3, padding=1)
        yield nn.BatchNorm2d(channels)
