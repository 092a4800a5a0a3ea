"""torchvision's ShuffleNetV2 of size 1: Ma et al., "ShuffleNet V2" (ECCV 2018).

Modules, keys and initial weights are torchvision's. Matching Guided Distillation (Yue et al., ECCV 2020) has the same
network.

Taps: the stem after its ReLU; the max-pooled stem, and ``stage2`` to ``stage4`` after the last shuffle: 24, 116, 232
and 464 channels at strides 4, 8, 16 and 32. The last block's ReLU moves behind its shuffle. The other half is already
rectified, so outputs stay the same and gradients differ in their last bits only. So a stage is its rectified preact,
with the channels in the same order; only the odd channels of a preact (from 0) have negative values. The pooled stem is
its own preact. (The reference code takes preacts, but an in-place ReLU turns that of the last stage into the stage.)
"""

from typing import ClassVar, Final

from torchvision.models.shufflenetv2 import ShuffleNetV2

from kdtable.models.declared import Declared, Taps

BLOCKS: Final = (4, 8, 4)
CHANNELS: Final = (24, 116, 232, 464, 1024)


class TvShuffleNetV2(Declared):
    """Stages of 4, 8 and 4 blocks with 116, 232 and 464 channels."""

    head: ClassVar = ("conv5", "fc")

    def __init__(self, num_classes: int) -> None:
        source = ShuffleNetV2(list(BLOCKS), list(CHANNELS), num_classes)
        last = [f"stage{stage}.{count - 1}" for stage, count in enumerate(BLOCKS, 2)]
        ends = tuple((f"{name}.view_1", f"{name}.branch2.7") for name in last)
        delayed = tuple((activation, shuffled) for shuffled, activation in ends)
        super().__init__(source, Taps("conv1.2", (("maxpool", "maxpool"), *ends), "mean", delayed))
        self.norms = ("conv1.1", *(f"{name}.branch2.6" for name in last))
