"""Classifiers on the feature maps of a network."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.layers import pool

WIDTH = 256  # channels of a convolutional head


class LinearHead(nn.Module):
    """A linear layer on a flattened feature map, with the keys of the DIH repository.

    From Asadian and Salehi-Abari, "Distilling Knowledge via Intermediate Classifiers" (arXiv 2103.00497).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.added_linear = nn.Linear(in_features, num_classes)

    def forward(self, tap: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) of a map (N, C, H, W), and the map flattened to (N, C H W)."""
        embedding = tap.flatten(1)
        return self.added_linear(embedding), embedding


class ConvHead(nn.Module):
    """Two 3x3 convolutions, the global average and two linear layers, with the keys of the DIH repository.

    From Wang et al., "Multi-head Knowledge Distillation for Model Compression" (arXiv 2012.02911), as in the DIH
    repository. The convolutions have no padding, but for the first one on maps smaller than 5x5.

    Args:
        channels: channels of the map.
        size: height and width of the map.
        num_classes: number of logits.
    """

    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, WIDTH, 3, padding=1 if size < 5 else 0, bias=False)
        self.bn_1 = nn.BatchNorm2d(WIDTH)
        self.conv_2 = nn.Conv2d(WIDTH, WIDTH, 3, bias=False)
        self.bn_2 = nn.BatchNorm2d(WIDTH)
        self.linear_1 = nn.Linear(WIDTH, WIDTH)
        self.linear_2 = nn.Linear(WIDTH, num_classes)

    def forward(self, tap: Tensor) -> Tensor:
        """Logits (N, classes) of a map (N, C, H, W)."""
        x = F.relu(self.bn_1(self.conv_1(tap)))
        x = F.relu(self.bn_2(self.conv_2(x)))
        logits: Tensor = self.linear_2(F.relu(self.linear_1(pool(x))))
        return logits
