"""CIFAR residual networks with shortcuts that have no parameters ("option A").

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2, with the ``state_dict`` keys of
Idelbayev's published CIFAR-10 checkpoints. As in that code, half of the zero channels go before and half after the
others, and convolutions and the classifier start from Kaiming's normal (fan in).

Taps: the stem after its ReLU; three stages after the ReLU that follows the addition; preacts are those sums.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, stage_of
from kdtable.models.resnet import BasicBlock
from kdtable.models.staged import Staged


class ZeroPadding(nn.Module):
    """A shortcut that takes every second pixel and adds ``added`` channels of zeros, half on each side."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + added, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(BasicBlock):
    """A block whose shortcut is a :class:`ZeroPadding`."""

    def shortcut(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        """See the base class."""
        return ZeroPadding(channels - in_channels)


class ResNetA(Staged):
    """A network of ``depth`` 6n + 2."""

    head: ClassVar = ("linear",)

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage_of(Block, 16, 16, 1, blocks)
        self.layer2 = stage_of(Block, 16, 32, 2, blocks)
        self.layer3 = stage_of(Block, 32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)
        self.norms = tuple(f"layer{stage}.{blocks - 1}.bn2" for stage in (1, 2, 3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
