"""The encoder of MoCo v2 (Chen et al., arXiv 2003.04297): torchvision's ResNet with a contrastive head in place of a
classifier.

The head is Linear, ReLU, Linear to 128 numbers, which are the embedding; there are no logits of classes, so that it
teaches without labels alone (``mgd`` its maps, ``seed`` its vectors). Keys are those of the published checkpoint's
``encoder_q``. Taps as of ``tv_resnet``.
"""

from typing import ClassVar, Final

from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from kdtable.models.declared import Declared, Taps
from kdtable.models.tv_resnet import BLOCKS, stage_norms, stage_taps

#: Width of the vectors.
VECTOR: Final = 128


class MoCoResNet(Declared):
    """An encoder of ``depth`` layers; ``num_classes`` changes nothing."""

    head: ClassVar = ("fc",)
    classifies: ClassVar = False

    def __init__(self, num_classes: int, depth: int) -> None:
        block, counts = BLOCKS[depth]
        source = ResNet(block, list(counts), num_classes=VECTOR)
        width = source.fc.in_features
        source.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), source.fc)
        super().__init__(source, Taps("relu", stage_taps(depth), "fc.2"))
        self.norms = stage_norms(depth)

    def classify(self, embedding: Tensor) -> Tensor:
        """The vectors (N, 128) themselves."""
        return embedding
