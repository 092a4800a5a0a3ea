"""Half-width MobileNetV2: Sandler et al., "Inverted Residuals and Linear Bottlenecks" (CVPR 2018).

As in the CRD benchmark, which differs from the paper: strides fit 32x32 images (the second stage does not reduce them),
ReLU replaces ReLU6, widths are truncated to whole numbers instead of rounded to multiples of 8, the first stage has an
expansion layer although it expands by 1, and there is no dropout.

Taps: the stem after its ReLU; the outputs of inverted-residual stages 1, 2, 4 and 6 (of 0 to 6), which are linear and
hence signed. They have no activation, so preacts are the same tensors.
"""

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from kdtable.models.layers import conv, init_convolutions, init_linear, pool, stage_of
from kdtable.models.network import Hold, Network

STEM = 16
HEAD = 1280
#: Expansion, channels, blocks and stride of each stage.
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
TAPPED = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1; the input is added where shapes allow."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * in_channels
        self.adds_input = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            conv(in_channels, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv(width, width, 3, stride, groups=width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv(width, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H / stride, W / stride)."""
        branch: Tensor = self.conv(x)
        return x + branch if self.adds_input else branch


class MobileNetV2(Network):
    """Half-width MobileNetV2 for images of 32x32."""

    head: ClassVar = ("conv2", "classifier")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, STEM, 3, stride=2), nn.BatchNorm2d(STEM), nn.ReLU())
        stages = []
        channels = STEM
        for expansion, width, blocks, stride in STAGES:
            stages.append(stage_of(partial(InvertedResidual, expansion=expansion), channels, width, stride, blocks))
            channels = width
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(conv(channels, HEAD, 1), nn.BatchNorm2d(HEAD), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(HEAD, num_classes))
        self.norms = tuple(f"blocks.{stage}.{STAGES[stage][2] - 1}.conv.7" for stage in TAPPED)
        init_convolutions(self)
        init_linear(self)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        x = self.conv1(x)
        hold.stem(x)
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in TAPPED:
                hold.preact(x)
                hold.stage(x)
        return pool(hold.last(self.conv2(x)))
