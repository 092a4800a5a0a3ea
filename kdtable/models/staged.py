"""The forward pass that the residual networks for small images share."""

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import pool
from kdtable.models.network import Hold, Network


class Staged(Network):
    """A network whose stem is a convolution, and whose blocks have a ReLU behind each.

    A subclass sets ``conv1``, ``bn1`` and the stages ``layer1``, ``layer2`` and so on.
    """

    conv1: nn.Module
    bn1: nn.Module

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        x = F.relu(self.bn1(self.conv1(x)))
        hold.stem(x)
        for name, stage in self.named_children():
            if name.startswith("layer"):
                for block in cast("Iterable[nn.Module]", stage):
                    before = block(x)
                    x = F.relu(before)
                hold.preact(before)
                hold.stage(x)
        return pool(hold.last(x))
