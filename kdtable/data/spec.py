"""What a data set is called, and what of it enters a run's identity. Free of torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from kdtable.errors import BadRequest, unknown

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class DataSpec:
    """A data set, described without its images.

    Attributes:
        name: short name for tables; for a file or folder its stem.
        key: unique and safe as a folder's name; for a file or folder, name and start of the content hash.
        kind: ``cifar10``, ``cifar100``, ``tiny-imagenet``, ``digits``, ``npz`` or ``folder``.
        path: where an ``npz`` or ``folder`` set was read, absolute; None for the built-in sets.
        sha256: content hash of an ``npz`` or ``folder`` set; None for the built-in sets.
        num_classes: labels are 0 .. num_classes - 1.
        mean: per channel, of the training images, for pixels in [0, 1].
        std: as ``mean``.
        image_size: height and width in pixels.
        train_count: number of training images.
        test_count: number of test images.
        flip: whether a mirrored training image keeps its meaning.
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

    def meaning(self) -> dict[str, object]:
        """What enters a run's identity: contents and their treatment, never where they lie."""
        content: dict[str, object] = {"kind": self.kind}
        if self.sha256 is not None:
            content["sha256"] = self.sha256
        treatment = {"mean": list(self.mean), "std": list(self.std), "flip": self.flip}
        return content | {"num_classes": self.num_classes} | treatment


def _built_in(
    name: str, num_classes: int, *, mean: Rgb, std: Rgb, counts: tuple[int, int], size: int = 32, flip: bool = True
) -> DataSpec:
    return DataSpec(name, name, name, None, None, num_classes, mean, std, size, *counts, flip)


# CIFAR-100's constants are those of the CRD benchmark, Tiny-ImageNet's those in the DIH repository. A mirrored digit is
# another sign.
BUILT_IN = {
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


def resolve(name: str) -> DataSpec:
    """The data set that a user calls ``name``: one of ``BUILT_IN``, ``npz:PATH`` or ``folder:PATH``.

    Built-in sets do not touch the disk. A file or folder is read and checked, and stays in memory for `load`.

    Raises:
        BadRequest: no such set or file, or contents that do not have the documented layout.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    kind, colon, place = name.partition(":")
    if not colon or kind not in ("npz", "folder"):
        raise unknown("data set", name, [*BUILT_IN, "npz:PATH", "folder:PATH"])
    if not place:
        raise BadRequest(f"data set '{name}' lacks a path: write {kind}:PATH")
    return _described(kind, Path(place).expanduser().resolve())


def _described(kind: str, path: Path) -> DataSpec:
    from kdtable.data.files import read

    content = read(kind, path)
    # a folder called "v1.2" has no suffix to take off
    name = path.stem if kind == "npz" else path.name
    return DataSpec(
        name=name,
        key=f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}-{content.sha256[:8]}",
        kind=kind,
        path=path,
        sha256=content.sha256,
        num_classes=content.num_classes,
        mean=content.mean,
        std=content.std,
        image_size=content.train_images.shape[-1],
        train_count=len(content.train_images),
        test_count=len(content.test_images),
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
