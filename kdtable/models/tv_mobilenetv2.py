"""torchvision's MobileNetV2: Sandler et al., "Inverted Residuals and Linear Bottlenecks" (CVPR 2018).

Modules, keys and initial weights are torchvision's. Its dropout of 0.2 before the classifier draws from torch's global
generator, which threads share. Here the mask is a function of a seed, drawn when the network is built, and of the
number of batches that the last batch norm has seen. The embedding is the input of the dropout.

Taps: the stem after its ReLU6; the last block of 24, 32, 96 and 320 channels, at strides 4, 8, 16 and 32. Blocks end
linearly, so preacts are the same tensors.
"""

from typing import ClassVar, Final, cast

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2

from kdtable.models.declared import Declared, Taps
from kdtable.models.dropout import dropped

DROPPED: Final = 0.2
STEM: Final = "features.0.2"
#: The sum of a block's input and branch; for a block without shortcut the branch.
STAGES: Final = ("features.3.add", "features.6.add", "features.13.add", "features.17.conv.3")
NORMS: Final = tuple(f"features.{block}.conv.3" for block in (3, 6, 13, 17))


class TvMobileNetV2(Declared):
    """torchvision's network of full width."""

    head: ClassVar = ("classifier",)

    def __init__(self, num_classes: int) -> None:
        source = MobileNetV2(num_classes)
        source.classifier[0] = nn.Identity()
        super().__init__(source, Taps(STEM, tuple((node, node) for node in STAGES), "flatten"))
        self.norms = NORMS
        # on the CPU even if the network is built on the meta device
        self._seed = int(torch.randint(2**62, (), device="cpu"))

    def feature_modules(self) -> list[nn.Module]:
        """All blocks, but not the convolution behind the last one."""
        return list(cast("nn.Sequential", self.get_submodule("features")))[:-1]

    def classify(self, embedding: Tensor) -> Tensor:
        """See the base class."""
        if self.training:
            batches = self.get_buffer("features.18.1.num_batches_tracked")
            embedding = dropped(embedding, DROPPED, self._seed, batches)
        return super().classify(embedding)
