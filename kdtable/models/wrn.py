"""Wide residual networks: Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016), without dropout.

As in the CRD benchmark. Blocks are BN-ReLU-conv-BN-ReLU-conv. If the number of channels changes, the activated input
feeds both the branch and a 1x1 shortcut; else the raw input is added.

Taps: the raw stem convolution; three stages, which are raw sums and hence signed. Preacts are the batch norm that
follows each of these sums, without its ReLU: the first one of the next stage, or the final one. The next layer reads
the same tensor. (The reference code normalises a second time for this tap, which in train mode updates the running
statistics twice.)
"""

from collections.abc import Iterable, Iterator
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, init_convolutions, pool, stage_of
from kdtable.models.network import Hold, Network


class Block(nn.Module):
    """A residual block; the caller applies its first batch norm, whose output may be a tap."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.convShortcut = None if in_channels == channels else conv(in_channels, channels, 1, stride)

    def forward(self, x: Tensor, normed: Tensor) -> Tensor:
        """The raw sum (N, channels, H / stride, W / stride); ``x`` is (N, C, H, W), ``normed`` is bn1(x)."""
        activated = F.relu(normed)
        branch: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return branch + (x if self.convShortcut is None else self.convShortcut(activated))


class Stage(nn.Module):
    """Blocks of equal width, under the key of the published checkpoints."""

    def __init__(self, in_channels: int, channels: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.layer = stage_of(Block, in_channels, channels, stride, blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(cast("Iterable[Block]", self.layer))


class WideResNet(Network):
    """A network of ``depth`` 6n + 4 whose stages have 16, 32 and 64 times ``widening`` channels."""

    head: ClassVar = ("bn1", "fc")
    norms = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")

    def __init__(self, num_classes: int, depth: int, widening: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv(3, 16, 3)
        self.block1 = Stage(16, 16 * widening, 1, blocks)
        self.block2 = Stage(16 * widening, 32 * widening, 2, blocks)
        self.block3 = Stage(32 * widening, 64 * widening, 2, blocks)
        self.bn1 = nn.BatchNorm2d(64 * widening)
        self.fc = nn.Linear(64 * widening, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        x = self.conv1(x)
        hold.stem(x)
        for stage in (self.block1, self.block2, self.block3):
            for index, block in enumerate(stage):
                normed = block.bn1(x)
                if index == 0 and stage is not self.block1:
                    hold.preact(normed)
                x = block(x, normed)
            hold.stage(x)
        normed = self.bn1(x)
        hold.preact(normed)
        return pool(hold.last(F.relu(normed)))
