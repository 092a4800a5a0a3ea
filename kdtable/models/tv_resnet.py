"""torchvision's ResNets: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), table 1.

Modules, keys and initial weights are torchvision's; unlike in the paper, a bottleneck's stride is in its 3x3
convolution. ``stem="small"`` gives the networks of Channel Distillation (Zhou et al., arXiv 2006.01683) for 32x32
images: the stem is a 3x3 convolution of stride 1, initialised like the others, without a max pool.

Taps: the stem after its ReLU and before the max pool; ``layer1`` to ``layer4`` after the ReLU that follows the last
addition, at strides 4, 8, 16 and 32 (1, 2, 4 and 8 with the small stem); preacts are those sums.
"""

from typing import ClassVar, Final

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from kdtable.models.declared import Declared, Taps
from kdtable.models.layers import conv

BLOCKS: Final[dict[int, tuple[type[nn.Module], tuple[int, int, int, int]]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class TvResNet(Declared):
    """A network of ``depth`` layers; ``stem`` is "imagenet" or "small"."""

    head: ClassVar = ("fc",)

    def __init__(self, num_classes: int, depth: int, stem: str = "imagenet") -> None:
        block, counts = BLOCKS[depth]
        source = ResNet(block, list(counts), num_classes=num_classes)
        if stem == "small":
            source.conv1 = conv(3, 64, 3)
            nn.init.kaiming_normal_(source.conv1.weight, mode="fan_out", nonlinearity="relu")
            source.maxpool = nn.Identity()
        stages = stage_taps(depth)
        super().__init__(source, Taps("relu", stages, "flatten", last=stages[-1][1]))
        self.norms = stage_norms(depth)


def stage_taps(depth: int) -> tuple[tuple[str, str], ...]:
    """For each stage the nodes of its last block's sum and of the ReLU behind it."""
    # A block calls its one ReLU module after each of its convolutions.
    return tuple((f"{name}.add", f"{name}.relu_{_convolutions(depth) - 1}") for name in _last_blocks(depth))


def stage_norms(depth: int) -> tuple[str, ...]:
    """For each stage the name of its last batch norm."""
    return tuple(f"{name}.bn{_convolutions(depth)}" for name in _last_blocks(depth))


def _convolutions(depth: int) -> int:
    return 2 if BLOCKS[depth][0] is BasicBlock else 3


def _last_blocks(depth: int) -> list[str]:
    return [f"layer{stage}.{count - 1}" for stage, count in enumerate(BLOCKS[depth][1], 1)]
