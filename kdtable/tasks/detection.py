"""Object detection: the detector's own losses, and COCO's average precision."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdtable import seeding
from kdtable.data.detection.annotations import Annotated, ground_truth
from kdtable.data.detection.sets import DetectionPart, DetectionSet, InMemory
from kdtable.data.sets import Images
from kdtable.data.spec import DataSpec
from kdtable.data.stream import PartName
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.errors import BadRequest
from kdtable.methods.base_terms import BaseTerm
from kdtable.models.blank import blank_images
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import FEATURES, Detections, DetectorOutputs
from kdtable.numerics.precision import Precision
from kdtable.recipes.metrics import DETECTION
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Meter
from kdtable.tasks.coco import measured
from kdtable.tasks.set_task import SetTask

#: Images per evaluation pass.
EVALUATION_BATCH: Final = 16


def _own_losses(student: DetectorOutputs, *_: object) -> Tensor:
    first, *others = student.losses.values()
    return sum(others, start=first)


class Detection(SetTask):
    """Object detection on `DetectionBatch`, with `DetectorOutputs`; see the base class.

    The base term ``detector`` is the sum of the detector's own losses: of RPN and RoI heads, or of RetinaNet's head. A
    cohort shares the teacher's backbone and FPN, and RetinaNet's head. The teacher's RoI heads judge the proposals that
    each student sampled.
    """

    images: DetectionSet
    metrics = DETECTION
    base_terms: ClassVar[Mapping[str, BaseTerm]] = {"detector": BaseTerm(_own_losses)}
    features: ClassVar[frozenset[str]] = FEATURES - {"detections"}
    measured_features: ClassVar[frozenset[str]] = frozenset({"detections"})
    per_student_features: ClassVar[frozenset[str]] = frozenset({"class_logits"})

    recordable = False

    def __init__(
        self, images: Images, recipe: Recipe, seed: int, precision: Precision, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        if not isinstance(images, DetectionSet):
            raise BadRequest(f"data set {images.spec.name} has no boxes to detect")
        super().__init__(images, recipe, seed, precision, ranks)

    def evaluation_batches(self, part: PartName, ranks: Ranks | None = None) -> Iterator[DetectionBatch]:
        """See the base class."""
        return self.images.evaluation_batches(part, EVALUATION_BATCH, self.device, None, ranks or self.ranks)

    @staticmethod
    def probe(image_size: int, count: int = 1, like: Tensor | None = None) -> DetectionBatch:
        """Black images without boxes."""
        images = blank_images(count, image_size, like)
        sizes = ((image_size, image_size),) * count
        boxes, labels = images.new_empty(0, 4), torch.empty(0, dtype=torch.int64, device=images.device)
        numbers = torch.arange(count)
        return DetectionBatch(images, sizes, sizes, (boxes,) * count, (labels,) * count, numbers, 0, numbers)

    @classmethod
    def imitation(cls, data: DataSpec, recipe: Recipe, seed: int, precision: Precision) -> "Detection":
        """Noise images with one box each, whose classes take turns."""
        count, size = recipe.batch_size, data.image_size
        generator = seeding.generator("calibration")
        noise = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator).numpy()
        box = (size // 4, size // 4, size // 2, size // 2)
        boxes = [Annotated.plain((size, size), [box], [number % data.num_classes]) for number in range(count)]
        part = DetectionPart(InMemory(list(noise)), boxes)
        spec = replace(data, train_count=count, test_count=count)
        return cls(DetectionSet(spec, part, part), recipe, seed, precision)

    def gather(self, outputs: Any, teacher: Any, batch: Any) -> tuple[Any, Any, Any]:
        """No method of detection compares images with each other."""
        raise NotImplementedError("detectors' outputs are not gathered from several ranks")

    @staticmethod
    def apply(network: nn.Module, batch: DetectionBatch, keep: frozenset[str]) -> DetectorOutputs:
        """The maps of a network, and logits of the right width; nothing that depends on what images show."""
        outputs: DetectorOutputs = network.blank(batch, FEATURES)  # type: ignore[operator]
        return outputs

    def forward(self, network: nn.Module, batch: DetectionBatch, keep: frozenset[str]) -> DetectorOutputs:
        """See the base class."""
        with self.precision.autocast():
            outputs: DetectorOutputs = network(batch, keep)
        return self._in_float32(outputs)

    def _in_float32(self, outputs: DetectorOutputs) -> DetectorOutputs:
        return outputs if self.precision.name in ("fp32", "tf32") else outputs.mapped(Tensor.float)

    def shared_features(self, needs: frozenset[str]) -> frozenset[str]:
        """See the base class: RoI heads read the FPN's maps. A RetinaNet's judgements of anchors are shared."""
        return needs | {"levels"} if "class_logits" in needs else needs

    def teacher_for(
        self, network: nn.Module | None, shared: DetectorOutputs | None, student: DetectorOutputs, batch: DetectionBatch
    ) -> DetectorOutputs | None:
        """See the base class: adds what the teacher's RoI heads say of the student's proposals."""
        if shared is None or network is None or shared.dense or not student.boxes:
            return shared
        with self.precision.autocast():
            logits = network.judge(shared.levels, student.boxes, batch.sizes)  # type: ignore[operator]
        return self._in_float32(replace(shared, class_logits=logits))

    def meter(self, part: PartName) -> Meter:
        """See the base class."""
        if part == "train":
            return TrainLosses(self.device)
        return AveragePrecision(self.images.boxes(part), self.images.spec.num_classes)


class TrainLosses:
    """Means over an epoch: the detector's own losses as ``train-class`` and so on, and ``train-positives``.

    ``train-positives`` is the share of the judged proposals or anchors that are no background.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(0, device=device)

    @torch.no_grad()
    def update(self, outputs: DetectorOutputs, batch: DetectionBatch) -> None:
        """See `kdtable.tasks.base.Meter`."""
        if not self._names:
            self._names = tuple(outputs.losses)
            self._sums = torch.zeros(len(self._names) + 3, device=self._device)
        losses = [loss.detach().float() * len(batch) for loss in outputs.losses.values()]
        positives, judged = _judged(outputs)
        images = torch.tensor(float(len(batch)), device=self._device)
        self._sums += torch.stack([*losses, positives, judged, images])

    def merge(self, ranks: Ranks) -> None:
        """See `kdtable.tasks.base.Meter`."""
        self._sums = ranks.all_reduce(self._sums)

    def result(self) -> dict[str, float]:
        """See `kdtable.tasks.base.Meter`."""
        *losses, positives, judged, images = self._sums.tolist()
        means = {f"train-{name}": loss / images for name, loss in zip(self._names, losses, strict=True)}
        return {**means, "train-positives": positives / max(1, judged)}


def _judged(outputs: DetectorOutputs) -> tuple[Tensor, Tensor]:
    """How many proposals or anchors are of a class, and how many are not ignored."""
    labels, logits = outputs.labels, outputs.class_logits
    assert labels is not None
    assert logits is not None
    positive = (labels >= 0) & (labels < logits.shape[-1]) if outputs.dense else labels > 0
    return positive.sum().float(), (labels >= 0).sum().float()


class AveragePrecision:
    """COCO's numbers of a part, in pixels of the original images.

    Args:
        boxes: the part's, image by image.
        num_classes: of the set.
    """

    def __init__(self, boxes: Sequence[Annotated], num_classes: int) -> None:
        self._boxes, self._num_classes = boxes, num_classes
        self._found: list[NDArray[np.float64]] = []

    def update(self, outputs: DetectorOutputs, batch: DetectionBatch) -> None:
        """See `kdtable.tasks.base.Meter`."""
        images = zip(batch.index.tolist(), outputs.detections, batch.sizes, batch.originals, strict=True)
        for index, found, size, original in images:
            self._found.append(_rows(index + 1, found, (original[0] / size[0], original[1] / size[1])))

    def merge(self, ranks: Ranks) -> None:
        """See `kdtable.tasks.base.Meter`."""
        self._found = [rows for part in ranks.all_gather_objects(self._found) for rows in part]

    def result(self) -> dict[str, float]:
        """See `kdtable.tasks.base.Meter`."""
        truth = ground_truth(self._boxes, self._num_classes)
        # In the images' order, on which ties depend, whatever rank measured them.
        found = sorted((rows for rows in self._found if len(rows)), key=lambda rows: float(rows[0, 0]))
        return measured(truth, np.concatenate(found) if found else np.zeros((0, 7)))


def _rows(image: int, found: Detections, scale: tuple[float, float]) -> NDArray[np.float64]:
    """(n, 7): image id, left, top, width, height, score, category id."""
    boxes = found.boxes.detach().double().cpu().numpy() * [scale[1], scale[0], scale[1], scale[0]]
    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    scores, labels = (one.detach().double().cpu().numpy()[:, None] for one in (found.scores, found.labels + 1))
    return np.concatenate([np.full((len(boxes), 1), float(image)), corner, sides, scores, labels], axis=1)
