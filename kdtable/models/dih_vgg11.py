"""VGG-11 with batch norm, as in the DIH repository.

Simonyan and Zisserman, "Very Deep Convolutional Networks" (ICLR 2015): eight 3x3 convolutions, each with bias and
batch norm, and five max pools; one linear layer in place of the paper's three. That layer reads the flattened last map,
so the network fits images of one size: 512 inputs for 32x32 pixels, 2,048 for 64x64. ``vgg11`` has the same tensors but
pools only three times. Layers start from torch's defaults.

Taps: the stem is the first batch norm's output, hence signed. Four stages after their ReLU; the option ``taps`` chooses
them:

- "code": the repository's cuts, which miss the pools: behind pool 1, before pool 2, behind the third convolution, and
  behind pool 5. (Its third cut is a batch norm's output, but an in-place ReLU rectifies it before it is read.)
- "paper": behind the first four of five max pools, as the README says.

Preacts are the same maps before the ReLU. A pool between convolution and tap runs before the ReLU: the two commute, in
value and in gradient.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtable.models.network import Hold, Network

WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
#: Convolutions, counted from 0, with a pool behind them.
POOLED = (0, 1, 3, 5, 7)
#: The convolution in front of each stage, and whether its pool comes before the stage too.
TAPS = {
    "code": {0: True, 1: False, 2: False, 7: True},
    "paper": {0: True, 1: True, 3: True, 5: True},
}


class DihVGG11(Network):
    """A network for images of ``image_size`` pixels; see the module for ``taps``."""

    head: ClassVar = ("classifier",)

    def __init__(self, num_classes: int, image_size: int, taps: str) -> None:
        super().__init__()
        if taps not in TAPS:
            raise ValueError(f"taps are one of {', '.join(TAPS)}, not '{taps}'")
        self.taps = TAPS[taps]
        self.norms = tuple(f"blocks.{index}.1" for index in self.taps)
        channels = (3, *WIDTHS[:-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after))
            for before, after in zip(channels, WIDTHS, strict=True)
        )
        last_size = image_size // 2 ** len(POOLED)
        if not last_size:
            raise RuntimeError(f"images of {image_size} pixels are too small for {len(POOLED)} pools")
        self.classifier = nn.Linear(WIDTHS[-1] * last_size**2, num_classes)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        for index, block in enumerate(self.blocks):
            normed = block(x)
            if index == 0:
                hold.stem(normed)
            pool_last = self.taps.get(index) is False
            if index in POOLED and not pool_last:
                normed = F.max_pool2d(normed, 2)
            x = F.relu(normed)
            if index in self.taps:
                hold.preact(normed)
                hold.stage(x)
            if index in POOLED and pool_last:
                x = F.max_pool2d(x, 2)
        return x.flatten(1)
