"""WRN-28-2 as in the history of the DIH repository: Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016).

The repository published it only with TOFD's classifiers; this is the network without them. It differs from the CRD
benchmark's (``wrn``): convolutions have a bias, a block's stride is in its second convolution, a shortcut takes the raw
input, a dropout of 0.3 lies between a block's convolutions, and the final batch norm has a momentum of 0.9. Layers
start from torch's defaults.

A mask of dropout is a function of a seed, drawn when the network is built, and of the number of batches that the batch
norm behind it has seen (``dropout``).

Taps: the raw stem convolution; three stages, which are raw sums and hence signed. Preacts are the batch norm that
follows each of these sums, without its ReLU: the first one of the next stage, or the final one.
"""

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.dropout import dropped
from kdtable.models.layers import pool, stage_of
from kdtable.models.network import Hold, Network
from kdtable.seeding import derive

DROPPED = 0.3
STEM = 16
WIDTHS = (32, 64, 128)
BLOCKS = 4  # per stage


class Block(nn.Module):
    """A residual block; the caller applies its first batch norm, whose output may be a tap."""

    seed = 0  # seeds its dropout; the network sets it

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride))

    def forward(self, x: Tensor, normed: Tensor) -> Tensor:
        """The raw sum (N, channels, H / stride, W / stride); ``x`` is (N, C, H, W), ``normed`` is bn1(x)."""
        branch = self.conv1(F.relu(normed))
        if self.training:
            branch = self._dropped(branch)
        branch = self.conv2(F.relu(self.bn2(branch)))
        summed: Tensor = branch + self.shortcut(x)
        return summed

    def _dropped(self, x: Tensor) -> Tensor:
        return dropped(x, DROPPED, self.seed, cast("Tensor", self.bn2.num_batches_tracked))


class PlainWideResNet(Network):
    """Stages of 32, 64 and 128 channels with four blocks each."""

    head: ClassVar = ("bn1", "linear")
    norms = ("layer2.0.bn1", "layer3.0.bn1", "bn1")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 3, padding=1)
        self.layer1 = stage_of(Block, STEM, WIDTHS[0], 1, BLOCKS)
        self.layer2 = stage_of(Block, WIDTHS[0], WIDTHS[1], 2, BLOCKS)
        self.layer3 = stage_of(Block, WIDTHS[1], WIDTHS[2], 2, BLOCKS)
        self.bn1 = nn.BatchNorm2d(WIDTHS[-1], momentum=0.9)
        self.linear = nn.Linear(WIDTHS[-1], num_classes)
        # on the CPU even if the network is built on the meta device
        seed = int(torch.randint(2**62, (), device="cpu"))
        for index, block in enumerate(self.blocks()):
            block.seed = derive(seed, index) >> 1  # below 2^62

    def blocks(self, start: int = 0) -> list[Block]:
        """The blocks of the stages from number ``start`` (from 0) on."""
        stages = (self.layer1, self.layer2, self.layer3)[start:]
        return [cast("Block", block) for stage in stages for block in stage]

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        x = self.conv1(x)
        hold.stem(x)
        for index, block in enumerate(self.blocks()):
            normed = block.bn1(x)
            if index and index % BLOCKS == 0:
                hold.preact(normed)
            x = block(x, normed)
            if index % BLOCKS == BLOCKS - 1:
                hold.stage(x)
        normed = self.bn1(x)
        hold.preact(normed)
        return pool(hold.last(F.relu(normed)))

    def rest(self, x: Tensor, stages: int) -> Tensor:
        """The embedding (N, 128) of ``x``, an output of the first ``stages`` stages, by the later stages."""
        for block in self.blocks(stages):
            x = block(x, block.bn1(x))
        return pool(F.relu(self.bn1(x)))
