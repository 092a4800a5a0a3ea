"""A picture of what networks find in test images, side by side with what is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kdtable import data as data_sets
from kdtable.checkpoints import student
from kdtable.checkpoints.student import Origin
from kdtable.data.detection.sets import DetectionSet
from kdtable.data.names import resolve
from kdtable.errors import BadRequest
from kdtable.export.files import load_network
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import Detections
from kdtable.models.network import Network
from kdtable.report.figures.style import COLOURS

#: Detections that are less sure are not drawn.
SURE: Final = 0.5
#: Images in a picture, and inches of each.
IMAGES: Final = 6
_INCHES: Final = 1.3


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A column of the picture: its heading, and the boxes of each image."""

    heading: str
    found: tuple[Detections, ...]


def picture(
    students: Sequence[tuple[Path, str]], data: str, data_root: Path, device: torch.device, *, sure: float = SURE
) -> Figure:
    """Draw the first test images of a data set: what is there, then what each network finds.

    A class has a colour; beside a box stands how sure the network is, in percent.

    Args:
        students: files of students or teachers as kdtable writes them, and what stands above; "" for their run's id.
        data: name of a data set with boxes.
        data_root: folder of data sets.
        device: of the networks.
        sure: lowest score that is drawn.

    Raises:
        BadRequest: the data set has no boxes, or other classes than a network.
    """
    networks = [_loaded(path) for path, _ in students]
    size = networks[0][1].image_size
    spec = resolve(data, size) if ":" in data else resolve(data)
    images = data_sets.load(spec, data_root)
    if not isinstance(images, DetectionSet):
        raise BadRequest(f"data set {spec.name} has no boxes to draw")
    for _, origin in networks:
        if origin.num_classes != spec.num_classes:
            raise BadRequest(
                f"{origin.network} of run {origin.run[:8]} knows {origin.num_classes} classes, and {spec.name} has "
                f"{spec.num_classes}"
            )
    batch = next(images.evaluation_batches("test", IMAGES, device))
    columns = [Shown("what is there", tuple(map(_truth, batch.boxes, batch.labels)))]
    titles = [_heading(origin, title) for (_, origin), (_, title) in zip(networks, students, strict=True)]
    found = [_found(network.to(device), batch, sure) for network, _ in networks]
    columns += map(Shown, titles, found)
    return _drawn(batch, columns)


def _loaded(path: Path) -> tuple[Network, Origin]:
    tensors, origin = student.load(path)
    return load_network(tensors, origin), origin


def _heading(origin: Origin, title: str) -> str:
    return f"{origin.network}\n{title or origin.run[:8]}\nAP {100 * origin.metrics.get('AP', 0.0):.1f}"


def _truth(boxes: torch.Tensor, labels: torch.Tensor) -> Detections:
    return Detections(boxes, torch.ones(len(labels)), labels)


@torch.no_grad()
def _found(network: Network, batch: DetectionBatch, sure: float) -> tuple[Detections, ...]:
    every = network(batch, frozenset({"detections"})).detections
    kept = [(one, one.scores >= sure) for one in every]
    return tuple(Detections(one.boxes[chosen], one.scores[chosen], one.labels[chosen]) for one, chosen in kept)


def _drawn(batch: DetectionBatch, columns: Sequence[Shown]) -> Figure:
    figure = Figure(figsize=(_INCHES * len(columns), _INCHES * len(batch) + 0.3), layout="constrained")
    grid = figure.subplots(len(batch), len(columns), squeeze=False)
    for row, (image, (height, width)) in enumerate(zip(batch.images.cpu(), batch.sizes, strict=True)):
        for axes, column in zip(grid[row], columns, strict=True):
            axes.imshow(image[:, :height, :width].permute(1, 2, 0).numpy())
            axes.set_axis_off()
            _boxes(axes, column.found[row], scores=column is not columns[0])
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column.heading)
    return figure


def _boxes(axes: Axes, found: Detections, *, scores: bool) -> None:
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        left, top, right, bottom = box
        colour = COLOURS[label % len(COLOURS)]
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.4)
        axes.add_patch(frame)
        if scores:
            patch = {"facecolor": colour, "edgecolor": "none", "pad": 0.6}
            axes.text(left, top, f"{100 * score:.0f}", color="white", va="bottom", fontsize=5, bbox=patch)
