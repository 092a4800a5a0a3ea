"""MobileNetV2 of Matching Guided Distillation (Yue et al., ECCV 2020): torchvision's with other strides.

The stride of 2 moves from the 64-channel to the 96-channel blocks, which leaves blocks 7 to 10 at stride 8. There is no
dropout. Keys and shapes are torchvision's, whose weights fit. (The reference code runs the network once more for each
tap, so that in train mode its early running statistics move several times a step; here they move once.)

Taps: the stem after its ReLU6; in blocks 4, 7, 11 and 17 the map behind the depthwise convolution, after its ReLU6:
144, 192, 384 and 960 channels at strides 8, 8, 16 and 32. Preacts are the batch norms before this ReLU6.
"""

from typing import ClassVar, Final, cast

from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

from kdtable.models.declared import Declared, Taps

#: Expansion, channels, blocks and stride of each group.
GROUPS: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 1),
    (6, 96, 3, 2),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
NORMS: Final = tuple(f"features.{block}.conv.1.1" for block in (4, 7, 11, 17))
ACTIVATIONS: Final = tuple(f"features.{block}.conv.1.2" for block in (4, 7, 11, 17))


class MgdMobileNetV2(Declared):
    """The network of full width."""

    head: ClassVar = ("classifier",)

    def __init__(self, num_classes: int) -> None:
        source = MobileNetV2(num_classes, inverted_residual_setting=[list(group) for group in GROUPS])
        source.classifier[0] = nn.Identity()
        super().__init__(source, Taps("features.0.2", tuple(zip(NORMS, ACTIVATIONS, strict=True)), "flatten"))
        self.norms = NORMS

    def feature_modules(self) -> list[nn.Module]:
        """All blocks, but not the convolution behind the last one."""
        return list(cast("nn.Sequential", self.get_submodule("features")))[:-1]
