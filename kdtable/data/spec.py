"""Names of data sets, and the part of them that enters a run's identity. Does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from kdtable.errors import BadRequest
from kdtable.plugins import Registry

Rgb = tuple[float, float, float]

#: Kinds of sets whose images are decoded on demand, and how a user names them.
STREAMED: Final = {"imagenet": "imagenet:PATH", "cub200": "cub200:PATH"}

#: Kinds of sets of images with boxes, and how a user names them.
DETECTION: Final = {"shapes": "shapes", "coco": "coco:PATH", "voc": "voc:PATH"}

#: Default size of the crops of such a set.
CROP_SIZE: Final = 224

#: Allowed sizes of crops: larger than any published network's; smaller ones leave most networks no pixel.
CROP_SIZES: Final = range(8, 1025)

#: Versions by kind, raised when decoding, cropping or resizing changes the pixels for the same files and random draws.
#: Sets that are decoded as a whole have it in their identity from 2 on, since older runs were stored without it.
DECODING_VERSIONS: Final = {
    "folder": 2,  # EXIF orientation is applied, and transparent pixels are put over black
    "tiny-imagenet": 1,
    "imagenet": 1,
    "cub200": 1,
}

#: Called with the numbers of images done, and of all.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """Callbacks of a fetch: progress in images, and messages for the user that are no errors."""

    progress: OnProgress
    notice: Callable[[str], None]


@dataclass(frozen=True)
class DataSpec:
    """A data set without its images; :func:`kdtable.data.resolve` creates one from a name.

    Attributes:
        name: short name for tables; for a file or folder its stem.
        key: unique, and safe as a folder's name; for a file or folder, its name and the start of the content hash.
        kind: ``cifar10``, ``cifar100``, ``stl10``, ``tiny-imagenet``, ``digits``, ``digits-few``, ``npz``, ``folder``,
            ``hf``, ``imagenet``, ``cub200``, ``shapes``, ``coco`` or ``voc``.
        path: absolute path of the file or folder, or a name of a hub; None for the built-in sets.
        sha256: content hash of an ``npz``, ``folder`` or ``hf`` set; for a streamed one, the hash of the used images'
            names, sizes and labels; None for the built-in sets.
        num_classes: labels are 0 .. num_classes - 1.
        mean: per channel, of the training images, for pixels in [0, 1].
        std: as ``mean``.
        image_size: height and width in pixels; for streamed sets those of the crops, for detection the length that the
            shorter side of an image is resized to.
        train_count: number of training images, without those that are held out.
        test_count: number of test images.
        flip: whether training images may be mirrored.
        resized: whether images of other sizes were scaled and cropped to ``image_size``.
        skipped: names of unreadable images that are left out, relative to ``path``.
        mended: whether wrong boxes and missing images of a detection set were left out.
        classes: names of a detection set's classes.
        validation: number of training images that are held out for validation (`kdtable.data.validation`).
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
    resized: bool = False
    skipped: tuple[str, ...] = ()
    validation: int = 0
    mended: bool = False
    classes: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def streamed(self) -> bool:
        """Whether images are decoded on demand; such sets ignore the recipe's padding."""
        return self.kind in STREAMED

    @property
    def uncropped(self) -> bool:
        """Whether recipes' crops do not apply, so that they ignore the padding."""
        return self.streamed or self.task == "detection"

    @property
    def task(self) -> str:
        """Name of the task that the set is for."""
        return "detection" if self.kind in DETECTION else "classification"

    @property
    def split_key(self) -> str:
        """As ``key``, and different for different numbers of held-out images."""
        return f"{self.key}-validation-{self.validation}" if self.validation else self.key

    def identity(self) -> dict[str, object]:
        """The part of a run's identity: contents and their treatment, without paths."""
        content: dict[str, object] = {"kind": self.kind}
        if self.sha256 is not None:
            content["sha256"] = self.sha256
        if self.streamed or self.resized or (self.task == "detection" and self.path):
            content["image_size"] = self.image_size
        version = DECODING_VERSIONS.get(self.kind, 1)
        if self.streamed or version > 1:
            content["decoding"] = version
        if self.validation:
            content["validation"] = self.validation
        treatment = {"mean": list(self.mean), "std": list(self.std), "flip": self.flip}
        return content | {"num_classes": self.num_classes} | treatment


#: Normalisation of torchvision's networks, and of papers that start from them.
IMAGENET_MEAN: Final[Rgb] = (0.485, 0.456, 0.406)
IMAGENET_STD: Final[Rgb] = (0.229, 0.224, 0.225)


def _built_in(
    name: str, num_classes: int, mean: Rgb, std: Rgb, counts: tuple[int, int], *, size: int = 32, flip: bool = True
) -> DataSpec:
    return DataSpec(name, name, name, None, None, num_classes, mean, std, size, *counts, flip)


# STL-10's constants are those in common use, CIFAR-100's the CRD benchmark's, Tiny-ImageNet's the DIH repository's.
# Digits are never mirrored.
_OWN = (
    _built_in("cifar10", 10, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), (50_000, 10_000)),
    _built_in("cifar100", 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), (50_000, 10_000)),
    _built_in("tiny-imagenet", 200, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), (100_000, 10_000), size=64),
    _built_in("stl10", 10, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), (5_000, 8_000), size=96),
    _built_in("digits", 10, (0.3053, 0.3053, 0.3053), (0.3235, 0.3235, 0.3235), (1348, 449), flip=False),
    _built_in("digits-few", 10, (0.3053, 0.3053, 0.3053), (0.3235, 0.3235, 0.3235), (100, 449), flip=False),
    _built_in("shapes", 3, (0.5, 0.5, 0.5), (0.29, 0.29, 0.29), (200, 60), size=64),
)
#: Built-in sets, and those of the entry points' group "kdtable.datasets": each a DataSpec of one of the known kinds.
BUILT_IN: Final[Registry[DataSpec]] = Registry("kdtable.datasets", {spec.name: spec for spec in _OWN})

#: Built-in sets that are parts of another, and have its classes, by key.
PART_OF: Final = {"digits-few": "digits", "digits-few-16": "digits-16"}

#: Normalisation of the digits at another size than theirs: a quarter of the pixels is four times the speed.
_DIGITS_AT: Final[dict[int, tuple[Rgb, Rgb]]] = {16: ((0.3053, 0.3053, 0.3053), (0.3184, 0.3184, 0.3184))}
#: The sizes, in pixels, of built-in sets that have several.
SIZES: Final = dict.fromkeys(("digits", "digits-few"), (*_DIGITS_AT, 32))


def at_size(spec: DataSpec, size: int | None) -> DataSpec:
    """A built-in set at another size of its images.

    Raises:
        BadRequest: it has one size, or others.
    """
    if size is None:
        return spec
    if spec.name not in SIZES:
        raise BadRequest(f"the images of data set '{spec.name}' have one size: leave out --image-size")
    if size not in SIZES[spec.name]:
        sizes = " or ".join(map(str, SIZES[spec.name]))
        raise BadRequest(f"data set '{spec.name}' has images of {sizes} pixels, not {size}: use --image-size {sizes}")
    if size == spec.image_size:
        return spec
    mean, std = _DIGITS_AT[size]
    return replace(spec, key=f"{spec.key}-{size}", mean=mean, std=std, image_size=size, resized=True)


#: ImageNet without a folder, for the weights that were published for it.
IMAGENET: Final = _built_in("imagenet", 1000, IMAGENET_MEAN, IMAGENET_STD, (1_281_167, 50_000), size=CROP_SIZE)


def check_batch_size(spec: DataSpec, batch_size: int) -> None:
    """Raise `BadRequest` unless the training set fills at least one batch."""
    if batch_size < 1:
        raise BadRequest(f"a batch of {batch_size} images cannot be trained on: use --batch-size with 1 or more")
    if spec.train_count < batch_size:
        raise BadRequest(
            f"data set {spec.name} has {spec.train_count} training images, fewer than one batch of "
            f"{batch_size}: use --batch-size"
        )
