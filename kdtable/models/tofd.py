"""Task-oriented feature distillation's classifiers: Zhang et al., "Task-Oriented Feature Distillation" (NeurIPS 2020).

Each stage's map gets a branch: separable blocks down to the shape of the last stage, the global average and a linear
classifier. As in the DIH repository:

- on 16-32-64 networks the last stage has a branch too, without blocks: a second classifier of the embedding;
- on ``wide_resnet18`` and ``wide_resnet34`` the network's own classifier is the last stage's;
- on ``wrn_28_2`` a branch runs the network's own later stages and final batch norm once more; only its classifier is
  its own. In eval mode all embeddings are equal. In train mode they differ by dropout and batch statistics, and these
  layers' statistics move once per pass.

Branches go from shallow to deep. Convolutions start from Kaiming's normal (fan out), classifiers from torch's defaults.
The repository averages windows of a fixed size; here the average is global.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from kdtable.models.branched import Branch, Branched, tap_shapes
from kdtable.models.layers import conv, init_convolutions, pool
from kdtable.models.network import Network
from kdtable.models.wide_resnet import MassiveResNet
from kdtable.models.wrn_28_2 import WIDTHS, PlainWideResNet


class SeparableBlock(nn.Module):
    """Two depthwise 3x3 convolutions, the first of stride 2, each followed by a 1x1 one, batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            conv(in_channels, in_channels, 3, 2, groups=in_channels),
            conv(in_channels, in_channels, 1),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            conv(in_channels, in_channels, 3, groups=in_channels),
            conv(in_channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H / 2, W / 2), rounded up."""
        out: Tensor = self.op(x)
        return out


class TofdBranch(nn.Module):
    """Separable blocks through the widths ``channels``, the global average and a linear layer."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*map(SeparableBlock, channels[:-1], channels[1:]))
        self.fc = nn.Linear(channels[-1], num_classes)
        init_convolutions(self)

    def forward(self, tap: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) of a map (N, C, H, W), and their embedding (N, channels[-1])."""
        embedding = pool(self.blocks(tap))
        return self.fc(embedding), embedding


class RepeatedWideResNet(Branched):
    """``wrn_28_2`` whose branches are its own later stages, each with a linear classifier."""

    backbone: PlainWideResNet

    def __init__(self, backbone: PlainWideResNet, num_classes: int) -> None:
        super().__init__(backbone, (nn.Linear(WIDTHS[-1], num_classes) for _ in WIDTHS[:-1]))

    def mounted(self) -> list[Branch]:
        """See the base class."""
        return [partial(self._branch, stage) for stage in range(len(self.branches))]

    def _branch(self, stage: int, tap: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.backbone.rest(tap, stage + 1)
        return self.branches[stage](embedding), embedding


def with_tofd(backbone: Network, num_classes: int, image_size: int) -> Branched:
    """The network with the branches of its family."""
    if isinstance(backbone, PlainWideResNet):
        return RepeatedWideResNet(backbone, num_classes)
    channels = [tap.shape[1] for tap in tap_shapes(backbone, image_size)]
    count = len(channels) - 1 if isinstance(backbone, MassiveResNet) else len(channels)
    return Branched(backbone, (TofdBranch(channels[stage:], num_classes) for stage in range(count)))
