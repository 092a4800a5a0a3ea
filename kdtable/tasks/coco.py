"""COCO's average precision and recall of boxes, by faster-coco-eval, whose numbers are pycocotools'."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdtable.errors import BadRequest
from kdtable.recipes.metrics import DETECTION

#: Names of the twelve numbers in COCO's order.
NAMES: Final = tuple(metric.stored for metric in DETECTION)


def measured(truth: dict[str, Any], found: NDArray[np.float64]) -> dict[str, float]:
    """COCO's numbers in [0, 1] by name; those of a size without objects are left out.

        measured(ground_truth(boxes, 3), np.array([[1, 10, 10, 20, 20, 0.9, 2]]))["AP50"]

    Args:
        truth: the boxes in COCO's layout (`kdtable.data.detection.annotations.ground_truth`).
        found: (n, 7): image id, left, top, width, height, score, category id.

    Raises:
        BadRequest: faster-coco-eval is not installed.
    """
    if not truth["annotations"]:
        return {}
    return dict(_known(_evaluated(truth, found)))


def _known(values: Sequence[float]) -> list[tuple[str, float]]:
    """The numbers that are defined; COCO writes -1 for the others."""
    return [(name, float(value)) for name, value in zip(NAMES, values, strict=True) if value > -1]


def _evaluated(truth: dict[str, Any], found: NDArray[np.float64]) -> Sequence[float]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise BadRequest("average precision needs faster-coco-eval: pip install 'kdtable[detection]'") from error
    objects = COCO(truth)
    results = objects.loadRes(found if len(found) else [])
    evaluation = COCOeval_faster(objects, results, iouType="bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers: Sequence[float] = evaluation.stats[: len(NAMES)]
    return numbers


def _silent(*_: object) -> None:
    """Print nothing."""
