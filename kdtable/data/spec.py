"""What a data set is called, and what of it enters a run's identity. Free of torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kdtable.errors import BadRequest
from kdtable.plugins import Registry

Rgb = tuple[float, float, float]

#: Sets whose images are decoded whenever they are needed, with what the user calls such a set.
STREAMED: Final = {"imagenet": "imagenet:PATH", "cub200": "cub200:PATH"}

#: What a photograph of such a set is cropped to where the user names no size.
CROP_SIZE: Final = 224

#: A larger crop than any network here was published with; a smaller one leaves most networks no pixel.
CROP_SIZES: Final = range(8, 1025)

#: Raised when decoding, cropping or resizing gives other pixels for the same files and draws. Sets that are decoded as
#: a whole know it from 2 on: their stored runs were made without one.
DECODING_VERSION: Final = 1
_DECODED: Final = ("folder", "tiny-imagenet")

#: Told how many of how many images have been looked at.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class DataSpec:
    """A data set, described without its images.

    Attributes:
        name: short name for tables; for a file or folder its stem.
        key: unique and safe as a folder's name; for a file or folder, name and start of the content hash.
        kind: ``cifar10``, ``cifar100``, ``tiny-imagenet``, ``digits``, ``npz``, ``folder``, ``imagenet`` or ``cub200``.
        path: where a set of files was read, absolute; None for the built-in sets.
        sha256: content hash of an ``npz`` or ``folder`` set; of a streamed one, the hash of the names, sizes and labels
            of the images that are used; None for the built-in sets.
        num_classes: labels are 0 .. num_classes - 1.
        mean: per channel, of the training images, for pixels in [0, 1].
        std: as ``mean``.
        image_size: height and width in pixels, of streamed sets those of the crops.
        train_count: number of training images.
        test_count: number of test images.
        flip: whether a mirrored training image keeps its meaning.
        skipped: names of the images that are left out because they cannot be read; relative to ``path``.
        notes: sentences for the user about what was left out or assumed.
    """

    name: str
    key: str
    kind: str
    path: Path | None
    sha256: str | None
    num_classes: int
    mean: Rgb
    std: Rgb
    image_size: int
    train_count: int
    test_count: int
    flip: bool = True
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def streamed(self) -> bool:
        """Whether images are decoded whenever they are needed; the recipe's padding is not used then."""
        return self.kind in STREAMED

    def identity(self) -> dict[str, object]:
        """What enters a run's identity: contents and their treatment, never where they lie."""
        content: dict[str, object] = {"kind": self.kind}
        if self.sha256 is not None:
            content["sha256"] = self.sha256
        if self.streamed:
            content["image_size"] = self.image_size
        if self.streamed or (self.kind in _DECODED and DECODING_VERSION > 1):
            content["decoding"] = DECODING_VERSION
        treatment = {"mean": list(self.mean), "std": list(self.std), "flip": self.flip}
        return content | {"num_classes": self.num_classes} | treatment


#: What torchvision's networks were trained with, and the networks of papers that begin with theirs.
IMAGENET_MEAN: Final[Rgb] = (0.485, 0.456, 0.406)
IMAGENET_STD: Final[Rgb] = (0.229, 0.224, 0.225)


def _built_in(
    name: str, num_classes: int, *, mean: Rgb, std: Rgb, counts: tuple[int, int], size: int = 32, flip: bool = True
) -> DataSpec:
    return DataSpec(name, name, name, None, None, num_classes, mean, std, size, *counts, flip)


# CIFAR-100's constants are those of the CRD benchmark, Tiny-ImageNet's those in the DIH repository. A mirrored digit is
# another sign.
_OWN = {
    "cifar10": _built_in(
        "cifar10", 10, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261), counts=(50000, 10000)
    ),
    "cifar100": _built_in(
        "cifar100", 100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), counts=(50000, 10000)
    ),
    "tiny-imagenet": _built_in(
        "tiny-imagenet",
        200,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        counts=(100_000, 10_000),
        size=64,
    ),
    "digits": _built_in(
        "digits",
        10,
        mean=(0.3053, 0.3053, 0.3053),
        std=(0.3235, 0.3235, 0.3235),
        counts=(1348, 449),
        flip=False,
    ),
}
#: Entry points of the group "kdtable.datasets" join these, each a DataSpec of one of the kinds that can be read.
BUILT_IN: Final[Registry[DataSpec]] = Registry("kdtable.datasets", _OWN)


#: ImageNet itself, for the weights that were published for it; no folder of it is named.
IMAGENET: Final = DataSpec(
    name="imagenet",
    key="imagenet",
    kind="imagenet",
    path=None,
    sha256=None,
    num_classes=1000,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    image_size=CROP_SIZE,
    train_count=1_281_167,
    test_count=50_000,
)


def check_batch_size(spec: DataSpec, batch_size: int) -> None:
    """Raise `BadRequest` unless the training set fills at least one batch."""
    if batch_size < 1:
        raise BadRequest(f"a batch of {batch_size} images cannot be trained on: use --batch-size with 1 or more")
    if spec.train_count < batch_size:
        raise BadRequest(
            f"data set {spec.name} has {spec.train_count} training images, fewer than one batch of "
            f"{batch_size}: use --batch-size"
        )
