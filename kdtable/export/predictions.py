"""What a trained student says of a test set, or of a folder of images."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from kdtable import data as data_sets
from kdtable.checkpoints import student
from kdtable.checkpoints.student import Origin
from kdtable.data.crops import central_view
from kdtable.data.detection.sets import DetectionSet
from kdtable.data.names import RESIZED, resolve, spelled
from kdtable.data.pixels import decode_image
from kdtable.data.spec import SIZES
from kdtable.errors import BadRequest
from kdtable.export.files import load_network
from kdtable.files.atomic import written_whole
from kdtable.models.network import Network

#: Images in one pass.
AT_ONCE: Final = 256

#: Endings of image files.
IMAGES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Predictions:
    """A student's predictions.

    Attributes:
        origin: of the student.
        names: of the images: paths in their folder, or positions in the test set.
        probabilities: (N, C) float32, the softmax of the logits.
        labels: (N,) int64; ``None`` if unknown.
    """

    origin: Origin
    names: Sequence[str]
    probabilities: Tensor
    labels: Tensor | None = None

    @property
    def predicted(self) -> Tensor:
        """The most probable classes (N,)."""
        return self.probabilities.argmax(dim=1)

    @property
    def accuracy(self) -> float:
        """Fraction of the images whose most probable class is their label."""
        return float(self.confusion().diagonal().sum()) / len(self.names)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have images."""
        table = self.confusion().double()
        return float((table.diagonal() / table.sum(dim=1))[table.sum(dim=1) > 0].mean())

    def confusion(self) -> Tensor:
        """Numbers of images (C, C) int64 by label (rows) and prediction (columns).

        Raises:
            ValueError: the labels are unknown.
        """
        if self.labels is None:
            raise ValueError("without labels there is no confusion matrix")
        classes = self.probabilities.shape[1]
        return torch.bincount(self.labels * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    def write(self, path: Path) -> None:
        """Write a CSV file: image, label if known, prediction and its probability; a line an image."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        known = [] if self.labels is None else [("label", self.labels.tolist())]
        best = [f"{value:.6f}" for value in self.probabilities.max(dim=1).values.tolist()]
        columns = [("image", self.names), *known, ("predicted", self.predicted.tolist()), ("probability", best)]
        lines.writerow(name for name, _ in columns)
        lines.writerows(zip(*(values for _, values in columns), strict=True))
        with written_whole(path) as file:
            file.write(text.getvalue().encode())


def of_test_set(path: Path, data: str, data_root: Path, device: torch.device) -> Predictions:
    """Predictions of the student in ``path`` on the test images of the data set ``data``.

    Raises:
        BadRequest: the data set cannot be read, or has other classes or another size of images than the student.
    """
    network, origin = _loaded(path, device)
    resized = origin.data.endswith(f"-{origin.image_size}")  # the key of a set whose images were scaled
    kind = spelled(data).partition(":")[0]
    spec = resolve(data, origin.image_size if resized and kind in (*RESIZED, *SIZES) else None)
    if spec.streamed and spec.image_size != origin.image_size:
        spec = resolve(data, origin.image_size)
    images = data_sets.load(spec, data_root)
    if isinstance(images, DetectionSet):
        raise BadRequest(f"{data} has boxes to detect, and predictions are of classifiers: name another set")
    if spec.num_classes != origin.num_classes:
        raise BadRequest(f"{data} has {spec.num_classes} classes, but the student knows {origin.num_classes}")
    if spec.image_size != origin.image_size:
        raise BadRequest(
            f"images of {data} are {spec.image_size} pixels wide, but the student was trained on {origin.image_size}"
        )
    batches = images.evaluation_batches("test", AT_ONCE, device)
    found = [(_probabilities(network, batch.images), batch.labels.cpu()) for batch in batches]
    probabilities, labels = (torch.cat(part) for part in zip(*found, strict=True))
    return Predictions(origin, [str(position) for position in range(len(labels))], probabilities, labels)


def of_images(path: Path, folder: Path, device: torch.device) -> Predictions:
    """Predictions of the student in ``path`` on all images below ``folder``: upright, central crops, scaled.

    Raises:
        BadRequest: the folder has no image, or one that cannot be read.
    """
    network, origin = _loaded(path, device)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
    if not files:
        raise BadRequest(f"{folder} holds no image ({', '.join(sorted(IMAGES))})")
    found = [_probabilities(network, batch.to(device)) for batch in _decoded(files, origin.image_size)]
    names = [file.relative_to(folder).as_posix() for file in files]
    return Predictions(origin, names, torch.cat(found))


def _loaded(path: Path, device: torch.device) -> tuple[Network, Origin]:
    tensors, origin = student.load(path)
    return load_network(tensors, origin).to(device), origin


def _decoded(files: Sequence[Path], size: int) -> Iterator[Tensor]:
    """Batches of images (N, 3, S, S) in [0, 1]."""
    for start in range(0, len(files), AT_ONCE):
        images = (decode_image(file, file.read_bytes(), as_shown=True) for file in files[start : start + AT_ONCE])
        views = [central_view(image, size) for image in images]
        yield torch.stack([torch.from_numpy(view.copy()) for view in views]).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def _probabilities(network: Network, images: Tensor) -> Tensor:
    logits: Tensor = network(images, frozenset()).logits
    return logits.softmax(dim=1).cpu()
