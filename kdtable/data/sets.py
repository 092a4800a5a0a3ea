"""Load image sets; sets that fit into memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from kdtable.data.contents import REQUIRED, Arrays
from kdtable.data.mixing import Mixing
from kdtable.data.names import read
from kdtable.data.randaugment import RandAugment
from kdtable.data.spec import DataSpec
from kdtable.data.stream import Batch, PartName, Stream, evaluation_batches
from kdtable.data.validation import split
from kdtable.data.views import TwoViews
from kdtable.data.weak_strong import WeakStrong
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.errors import BadRequest
from kdtable.recipes.recipe import WEAK_STRONG, Recipe

if TYPE_CHECKING:
    from kdtable.data.detection.sets import DetectionSet
    from kdtable.data.streamed import StreamedSet

#: A set of images with labels, or with boxes.
Images: TypeAlias = "ImageSet | StreamedSet | DetectionSet"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set in CPU memory: images (N, 3, H, W) uint8, labels (N,) int64; ``validation`` has held-out ones, if any."""

    spec: DataSpec
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    validation: tuple[torch.Tensor, torch.Tensor] | None = None
    _moved: dict[tuple[PartName, torch.device], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def stream(self, recipe: Recipe, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> Stream:
        """The training set, augmented as in ``recipe``: this rank's shards of the batches, on ``device``."""
        return (WeakStrong if recipe.views == WEAK_STRONG else Stream)(
            self.train_images,
            self.train_labels,
            batch_size=recipe.batch_size,
            pad=recipe.crop_padding,
            fill=recipe.crop_fill,
            flip=self.spec.flip,
            device=device,
            ranks=ranks,
            augment=RandAugment.of(recipe),
            mixing=Mixing.of(recipe, self.spec.num_classes, self.spec.image_size),
        )

    def two_views(self, recipe: Recipe, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> TwoViews:
        """The training set in two views of each image, without labels, on ``device``."""
        return TwoViews(self.train_images, recipe, flip=self.spec.flip, device=device, ranks=ranks)

    def evaluation_batches(
        self,
        part: PartName,
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> Iterator[Batch]:
        """All images of a part in the test view, in batches on ``device``; epoch is 0.

        Images keep their order, unless ``order`` draws one. The last batch may be shorter. Each rank gets its shard of
        every batch.
        """
        images, labels = self._part(part) if part == "train" else self._on(part, device)
        return (batch.shard(ranks) for batch in evaluation_batches(images, labels, batch_size, device, order))

    def _part(self, part: PartName) -> tuple[torch.Tensor, torch.Tensor]:
        """A part's images and labels; raises `ValueError` if no image is held out for validation."""
        if part == "validation":
            if self.validation is None:
                raise ValueError(f"{self.spec.name} has no images that are held out")
            return self.validation
        return (self.train_images, self.train_labels) if part == "train" else (self.test_images, self.test_labels)

    def _on(self, part: PartName, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """A part's images and labels on a device, moved once, since every epoch of every student needs them."""
        if (part, device) not in self._moved:
            images, labels = self._part(part)
            self._moved[part, device] = images.to(device), labels.to(device)
        return self._moved[part, device]

    def held_out(self) -> "ImageSet":
        """The set with the training images that its spec holds out as ``validation``.

        Raises:
            BadRequest: a class would have no image left to train on.
        """
        left, held = split(self.spec, self.train_labels)
        return replace(
            self,
            train_images=self.train_images[left],
            train_labels=self.train_labels[left],
            validation=(self.train_images[held], self.train_labels[held]),
        )


def load(spec: DataSpec, root: Path) -> Images:
    """Load the images of ``spec``. CIFAR and Tiny-ImageNet are in ``root``; CIFAR is downloaded into it on first use.

    A streamed set's images are not read yet.

    Example:
        images = load(resolve("cifar100"), Path("data"))

    Raises:
        BadRequest: CIFAR is missing and cannot be downloaded, Tiny-ImageNet is missing or malformed, or a file or
            folder has changed since `resolve`, or too many images of a class are held out.
    """
    if spec.streamed:
        from kdtable.data.streamed import StreamedSet

        return StreamedSet.of(spec)
    if spec.task == "detection":
        from kdtable.data.detection import sets as detection_sets

        return detection_sets.load(spec)
    arrays = _arrays(spec, root)
    train, labels, test, test_labels = (torch.from_numpy(arrays[name]) for name in REQUIRED)
    images = ImageSet(spec, train, labels, test, test_labels)
    return images.held_out() if spec.validation else images


def _arrays(spec: DataSpec, root: Path) -> Arrays:
    from kdtable.data import plugged
    from kdtable.data.formats import cifar, digits, tiny_imagenet

    if spec.kind in ("cifar10", "cifar100", "stl10"):
        return cifar.read(spec.kind, root)
    if spec.kind == "tiny-imagenet":
        return tiny_imagenet.read(spec, root)
    if spec.kind == "digits":
        return digits.read(spec.image_size)
    if spec.kind == "digits-few":
        return digits.few(digits.read(spec.image_size))
    if spec.path is None:
        content = plugged.read(spec.kind)
        if content.sha256 != spec.sha256:
            raise BadRequest(
                f"data set {spec.name}: its plug-in made other arrays before: let it make the same each time"
            )
        return content.arrays
    content = read(spec.kind, spec.path, spec.image_size if spec.resized else None)
    if content.sha256 != spec.sha256:
        raise BadRequest(f"{spec.path}: has changed while it was in use; start again")
    return content.arrays
