"""CIFAR residual networks with shortcuts that have no parameters ("option A").

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2, with the ``state_dict`` keys of
Idelbayev's published CIFAR-10 checkpoints. As in that code, half of the zero channels go before and half after the
others, and convolutions and the classifier start from Kaiming's normal (fan in).

Taps: the stem after its ReLU; three stages after the ReLU that follows the addition; preacts are those sums.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import conv, pool, run_stages
from kdtable.models.network import Hold, Network
from kdtable.models.resnet import BasicBlock


class ZeroPadding(nn.Module):
    """A shortcut that takes every second pixel and adds ``added`` channels of zeros, half on each side."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + added, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class ResNetA(Network):
    """A network of ``depth`` 6n + 2."""

    head: ClassVar = ("linear",)

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, num_classes)
        self.norms = tuple(f"layer{stage}.{blocks - 1}.bn2" for stage in (1, 2, 3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        x = F.relu(self.bn1(self.conv1(x)))
        hold.stem(x)
        return pool(hold.last(run_stages((self.layer1, self.layer2, self.layer3), x, hold)))


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    if channels == in_channels:
        first = BasicBlock(in_channels, channels, 1, None)
    else:
        first = BasicBlock(in_channels, channels, 2, ZeroPadding(channels - in_channels))
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, None) for _ in range(blocks - 1)))
