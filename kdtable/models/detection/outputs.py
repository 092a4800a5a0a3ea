"""The outputs of a detector."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from torch import Tensor

#: What a detector can return besides its losses; ``keep=`` takes a subset. ``detections`` are for measuring alone.
FEATURES: Final = frozenset({"levels", "taps", "class_logits", "anchors", "detections"})


@dataclass(frozen=True, slots=True)
class Detections:
    """What a network found in one image, the surest first.

    Attributes:
        boxes: (n, 4): left, top, right, bottom, in pixels of the batch.
        scores: (n,) in [0, 1].
        labels: (n,) int64, from 0 to the number of classes - 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class DetectorOutputs:
    """The tensors of one forward pass for N images; those that ``keep`` leaves out are ``None`` or empty.

    A student in train mode has ``losses``, and of Faster R-CNN the proposals that it sampled. A teacher, and every
    network in eval mode, runs on no proposals of its own unless ``keep`` has ``detections``.

    Attributes:
        dense: whether it is a RetinaNet, which judges anchors; Faster R-CNN judges proposals.
        losses: the detector's own losses by name, scalars; empty in eval mode.
        levels: outputs of the FPN (N, C, h, w), fine to coarse, the extra coarse ones (P6, P7) too.
        taps: C2 to C5, the backbone's stages before their last ReLU (N, C, h, w), fine to coarse.
        class_logits: the judgement of each box. Faster R-CNN: (R, classes + 1), background first, of the R proposals
            that the student sampled in its N images, image by image; of a teacher, of the same proposals of that
            student. RetinaNet: (N, A, classes) of all anchors, to be read through a sigmoid.
        labels: the class that each of these boxes was assigned. Faster R-CNN: (R,) int64, 0 for the background, else
            the class + 1, the column of ``class_logits``. RetinaNet: (N, A) int64, the class, from 0; the number of
            classes for the background; -1 if the anchor is ignored. ``None`` for a teacher.
        boxes: the sampled proposals of each image (n, 4), R together, in pixels of the batch; empty for RetinaNet.
        anchors: of each level (h * w * a, 4), place by place in rows, in pixels of the batch; those of the RPN or of
            RetinaNet's head. They are the same for all images.
        detections: what was found in each image.
    """

    dense: bool
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    levels: tuple[Tensor, ...] = ()
    taps: tuple[Tensor, ...] = ()
    class_logits: Tensor | None = None
    labels: Tensor | None = None
    boxes: tuple[Tensor, ...] = ()
    anchors: tuple[Tensor, ...] = ()
    detections: tuple[Detections, ...] = ()

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "DetectorOutputs":
        """The outputs with ``change`` applied to losses, maps and logits."""
        return replace(
            self,
            losses={name: change(loss) for name, loss in self.losses.items()},
            levels=tuple(map(change, self.levels)),
            taps=tuple(map(change, self.taps)),
            class_logits=None if self.class_logits is None else change(self.class_logits),
        )

    def part(self, rows: slice) -> "DetectorOutputs":
        """A teacher's shared outputs for some of the images."""
        logits = self.class_logits[rows] if self.dense and self.class_logits is not None else None
        return DetectorOutputs(
            self.dense,
            levels=tuple(level[rows] for level in self.levels),
            taps=tuple(tap[rows] for tap in self.taps),
            class_logits=logits,
            anchors=self.anchors,
        )
