"""Two random views of each training image: crop with scale, colours, blur, mirroring, as MoCo draws them.

Views of sets in memory are made on the device, whole batches at once, in float32; the released codes work on bytes, one
image after the other, and their blur is Pillow's. The order of images and each of the views have random streams of
their own, so that a batch is a function of (seed, stage, epoch, position).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from kdtable import seeding
from kdtable.data import colours
from kdtable.data.crops import RATIO, TRIES
from kdtable.data.stream import Batch, scaled
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.recipes.recipe import Recipe

#: Random numbers of a view: four per tried crop, then mirroring, whether colours change, the amounts of the four
#: changes, their order, whether it becomes grey, whether it is blurred, and how much.
_CROP: Final = 4 * TRIES
_FLIP, _JITTER, _AMOUNTS, _ORDER, _GREY, _BLUR, _SIGMA, DRAWS = (
    _CROP + place for place in (0, 1, 2, 6, 10, 11, 12, 13)
)

#: How the four colour changes work, in torchvision's order, and the largest change of each.
_CHANGES: Final = (
    (colours.brightness, 0.4),
    (colours.contrast, 0.4),
    (colours.saturation, 0.4),
    (colours.hue, 0.1),
)
_HUE: Final = 3


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Views(Batch):
    """A batch of two views of each image; ``images`` is the first one. Labels are 0: none is known.

    Attributes:
        other: (B, 3, H, W), the second views.
    """

    other: Tensor

    def part(self, rows: slice | Tensor) -> "Views":
        """See the base class."""
        images, labels, index = self.images[rows], self.labels[rows], self.index[rows]
        return replace(self, images=images, labels=labels, index=index, of=self.whole, other=self.other[rows])


@dataclass(frozen=True, slots=True)
class View:
    """How a view is drawn.

    Attributes:
        least: smallest fraction of the image's area that a crop covers; the largest is 1.
        jitter: probability that brightness, contrast, saturation and hue change.
        grey: probability of grey.
        blur: probability of a blur of 0.1 to 2 pixels.
    """

    least: float = 0.2
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5

    def of(self, images: Tensor, draws: Tensor, *, flip: bool) -> Tensor:
        """Views of images (B, 3, H, W) in [0, 1] by draws (B, ``DRAWS``) in [0, 1) of the CPU."""
        mirrored = (draws[:, _FLIP] < 0.5) & flip
        views = cropped(images, boxes(draws[:, :_CROP], images.shape[2], images.shape[3], self.least), mirrored)
        views = _jittered(views, draws, draws[:, _JITTER] < self.jitter)
        if len(rows := _rows(draws[:, _GREY] < self.grey, views)):
            views[rows] = colours.grey(views[rows]).expand(-1, 3, -1, -1)
        if len(rows := _rows(draws[:, _BLUR] < self.blur, views)):
            sigma = (0.1 + 1.9 * draws[:, _SIGMA]).to(views)[rows]
            views[rows] = colours.blur(views[rows], sigma, min(6, min(views.shape[2:]) - 1))
        return views

    @property
    def draws(self) -> int:
        """How many random numbers a Pillow image takes beside those of its crop and mirroring."""
        return DRAWS - _JITTER

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image:
        """A Pillow image, already cropped and mirrored, with other colours and blurred, by ``draws`` in [0, 1)."""
        from torchvision.transforms import functional as on_pillow  # late: see `kdtable.data.randaugment`

        at = [*[0.0] * _JITTER, *draws]
        if at[_JITTER] < self.jitter:
            for which in sorted(range(len(_CHANGES)), key=lambda change: at[_ORDER + change]):
                moved = _CHANGES[which][1] * (2 * at[_AMOUNTS + which] - 1)
                change = getattr(on_pillow, f"adjust_{_CHANGES[which][0].__name__}")
                image = change(image, moved if which == _HUE else 1 + moved)
        if at[_GREY] < self.grey:
            image = on_pillow.to_grayscale(image, 3)
        if at[_BLUR] < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * at[_SIGMA]))
        return image


#: By the name that the recipe's ``views`` has: MoCo v2's, and those of MoCo's CIFAR-10 demo.
VIEWS: Final = {"moco-v2": View(), "moco-cifar": View(least=0.08, blur=0.0)}


class TwoViews:
    """The training set in random order, in two views, without labels. An incomplete last batch is left out.

    Args:
        images: (N, 3, H, W) uint8.
        recipe: has the batch size and the kind of views.
        flip: whether images may be mirrored.
        device: where the set is kept and batches are made.
        ranks: the process group; each rank gets its shard of every batch.
    """

    waited = 0.0

    def __init__(
        self, images: Tensor, recipe: Recipe, *, flip: bool, device: torch.device, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        self._images = images.to(device)
        self._view, self._flip, self._ranks = VIEWS[recipe.views], flip, ranks
        self._size = recipe.batch_size

    def epoch(self, seed: int, stage: str, epoch: int) -> Iterator[Views]:
        """The batches of a stage's epoch (from 1)."""
        count = len(self._images)
        order = torch.randperm(count, generator=seeding.generator("batches", seed, stage, epoch))
        draws = [
            torch.rand(
                count, DRAWS, dtype=torch.float64, generator=seeding.generator("view", which, seed, stage, epoch)
            )
            for which in (1, 2)
        ]
        for start in range(0, count - self._size + 1, self._size):
            part = slice(start, start + self._size)
            index = order[part].to(self._images.device)
            images = scaled(self._images[index])
            first, second = (self._view.of(images, drawn[part], flip=self._flip) for drawn in draws)
            batch = Views(first, torch.zeros_like(index), index, epoch, other=second)
            yield batch if self._ranks.size == 1 else batch.part(self._ranks.shard(len(batch)))


def boxes(draws: Tensor, height: int, width: int, least: float) -> Tensor:
    """Random crops (B, 4), int64: left, top, width and height, by torchvision's ``RandomResizedCrop``.

    Args:
        draws: (B, 4 * ``TRIES``) in [0, 1).
        height: of the images.
        width: of the images.
        least: smallest fraction of the area.
    """
    area, ratio, across, down = draws.view(len(draws), -1, 4).unbind(dim=2)
    low, high = torch.tensor(RATIO, dtype=torch.float64).log()
    covered, shape = height * width * (least + (1 - least) * area), torch.exp(low + (high - low) * ratio)
    wide, tall = torch.sqrt(covered * shape).round(), torch.sqrt(covered / shape).round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    chosen = fits.int().argmax(dim=1, keepdim=True)  # the first that fits
    wide, tall, across, down, fits = (x.gather(1, chosen) for x in (wide, tall, across, down, fits))
    left, top = ((width - wide + 1) * across).floor(), ((height - tall + 1) * down).floor()
    found = torch.cat([left, top, wide, tall], dim=1)
    return torch.where(fits, found, _middle(height, width)).long()


def _middle(height: int, width: int) -> Tensor:
    """The largest central crop with an allowed aspect ratio."""
    tall = round(width / RATIO[0]) if width < RATIO[0] * height else height
    wide = round(height * RATIO[1]) if width > RATIO[1] * height else width
    return torch.tensor([(width - wide) // 2, (height - tall) // 2, wide, tall], dtype=torch.float64)


def cropped(images: Tensor, crops: Tensor, mirrored: Tensor) -> Tensor:
    """Crops of images (B, 3, H, W), scaled back to (H, W) bilinearly, some mirrored.

    Args:
        images: float.
        crops: (B, 4), as :func:`boxes` draws them.
        mirrored: (B,) bool.
    """
    height, width = images.shape[2:]
    left, top, wide, tall = (part.to(images.device) for part in crops.double().unsqueeze(2).unbind(dim=1))
    x, y = _places(left, wide, width), _places(top, tall, height)
    x = torch.where(mirrored.to(images.device).unsqueeze(1), x.flip(1), x)
    grid = torch.stack([x.unsqueeze(1).expand(-1, height, -1), y.unsqueeze(2).expand(-1, -1, width)], dim=3)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def _places(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where the pixels of a scaled crop lie along a side, (B, ``size``) from -1 to 1; never outside the crop."""
    places = (torch.arange(size, device=start.device) + 0.5) * length / size - 0.5
    return (2 * (start + places.clamp(min=0).minimum(length - 1)) + 1) / size - 1


def _jittered(views: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """Change the colours of the chosen images, each image in its own order."""
    order = draws[:, _ORDER:_GREY].argsort(dim=1)
    for place in range(len(_CHANGES)):
        for which, (change, most) in enumerate(_CHANGES):
            if len(rows := _rows(chosen & (order[:, place] == which), views)):
                moved = most * (2 * draws[:, _AMOUNTS + which] - 1)
                amount = moved if which == _HUE else 1 + moved
                views[rows] = change(views[rows], amount.to(views)[rows])
    return views


def _rows(chosen: Tensor, like: Tensor) -> Tensor:
    """Positions of the chosen images, on the device of ``like``."""
    return chosen.nonzero().flatten().to(like.device)
