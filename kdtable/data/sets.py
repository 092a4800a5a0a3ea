"""Image sets: those in memory, and what they have in common with those that are decoded when they are needed."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from kdtable.data.protocols import Images, PartName
from kdtable.data.spec import DataSpec
from kdtable.data.stream import Batch, Stream, evaluation_batches
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.errors import BadRequest
from kdtable.files.atomic import locked
from kdtable.recipes.recipe import Recipe


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set on the CPU: images (N, 3, H, W) uint8, labels (N,) int64."""

    spec: DataSpec
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    _placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, init=False, repr=False)

    def stream(self, recipe: Recipe, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> Stream:
        """See `Images`."""
        return Stream(
            self.train_images,
            self.train_labels,
            batch_size=recipe.batch_size,
            pad=recipe.crop_padding,
            fill=recipe.crop_fill,
            flip=self.spec.flip,
            device=device,
            ranks=ranks,
        )

    def evaluation_batches(
        self,
        part: PartName,
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> Iterator[Batch]:
        """See `Images`."""
        images, labels = (self.train_images, self.train_labels) if part == "train" else self._test_on(device)
        return (batch.shard(ranks) for batch in evaluation_batches(images, labels, batch_size, device, order))

    def _test_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The test part, which every epoch of every student needs, moved to a device once."""
        if device not in self._placed:
            self._placed[device] = self.test_images.to(device), self.test_labels.to(device)
        return self._placed[device]


def load(spec: DataSpec, root: Path) -> Images:
    """The images of ``spec``. CIFAR and Tiny-ImageNet are read from ``root``; CIFAR is downloaded into it on first use.

    Of a streamed set no image is read yet.

    Raises:
        BadRequest: CIFAR is not there and cannot be downloaded, Tiny-ImageNet is not there or not as it should be, or
            a file or folder changed since `resolve`.
    """
    if spec.streamed:
        from kdtable.data.streamed import StreamedSet

        return StreamedSet.of(spec)
    return _in_memory(spec, root)


def _in_memory(spec: DataSpec, root: Path) -> ImageSet:
    if spec.kind in ("cifar10", "cifar100"):
        return _cifar(spec, root)
    if spec.kind == "tiny-imagenet":
        return _tiny_imagenet(spec, root)
    if spec.kind == "digits":
        return _digits(spec)
    return _from_files(spec)


def _from_files(spec: DataSpec) -> ImageSet:
    from kdtable.data.names import read

    assert spec.path is not None  # `resolve` gives every such set its path
    content = read(spec.kind, spec.path)
    if content.sha256 != spec.sha256:
        raise BadRequest(f"{spec.path}: has changed while it was in use; start again")
    parts = (content.train_images, content.train_labels, content.test_images, content.test_labels)
    return ImageSet(spec, *(torch.from_numpy(part) for part in parts))


def _digits(spec: DataSpec) -> ImageSet:
    """scikit-learn's 1,797 digits at 32 x 32, in three equal channels; every fourth is a test image."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).unsqueeze(1)
    # Weights and values are dyadic, so every product here is exact and rounds the same everywhere.
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear", align_corners=False)
    images = (large * 255 / 16).round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(raw.target).long()
    test = torch.arange(len(labels)) % 4 == 3
    return ImageSet(spec, images[~test], labels[~test], images[test], labels[test])


def _tiny_imagenet(spec: DataSpec, root: Path) -> ImageSet:
    from kdtable.data.formats import tiny_imagenet
    from kdtable.data.formats.npz import REQUIRED

    arrays = tiny_imagenet.read(spec, root)
    return ImageSet(spec, *(torch.from_numpy(arrays[name]) for name in REQUIRED))


def _cifar(spec: DataSpec, root: Path) -> ImageSet:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[spec.kind]
    parts = _cifar_parts(kind, root)
    if parts is None:
        try:
            with locked(root / f".{kind.base_folder}.lock"):
                parts = _cifar_parts(kind, root)  # by another process in the meantime
                if parts is None:
                    _install_cifar(kind, root)
                    parts = kind(root, train=True), kind(root, train=False)
        except (OSError, HTTPException, RuntimeError) as error:
            raise BadRequest(
                f"{kind.__name__} is not in {root} and could not be downloaded from {kind.url} ({error}): put "
                f"{kind.filename} into {root}, or name the folder that has it by KDTABLE_DATA or --data-root"
            ) from error
    train, test = parts
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    labels = [torch.tensor(part.targets, dtype=torch.int64) for part in (train, test)]
    return ImageSet(spec, images[0], labels[0], images[1], labels[1])


def _cifar_parts(kind: Any, root: Path) -> tuple[Any, Any] | None:
    """The training and the test part; ``None`` if a file is absent, or its checksum is wrong."""
    try:
        return kind(root, train=True), kind(root, train=False)
    except RuntimeError:
        return None


def _install_cifar(kind: Any, root: Path) -> None:
    """Download the archive into ``root`` unless it is there, and unpack it, each by a move into its place.

    So a killed run leaves nothing that another, later or at the same time, could take for the real thing. What it
    does leave, the next one removes: both hold the folder's lock.
    """
    from torchvision.datasets.utils import check_integrity, download_url, extract_archive

    archive, unpacked = root / kind.filename, root / kind.base_folder
    if archive.exists() and not check_integrity(archive, kind.tgz_md5):
        raise BadRequest(
            f"{archive}: is damaged (its MD5 is not {kind.tgz_md5}): delete it to have it downloaded again, "
            f"or put the archive of {kind.url} in its place"
        )
    staging = root / f".{kind.base_folder}.part"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        if not archive.exists():
            download_url(kind.url, staging, kind.filename, kind.tgz_md5)
            os.replace(staging / kind.filename, archive)
        if unpacked.exists():
            os.replace(unpacked, staging / "damaged")
        extract_archive(archive, staging)
        os.replace(staging / kind.base_folder, unpacked)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
