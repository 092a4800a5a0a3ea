"""COCO's twelve numbers are pycocotools', in the pixels of the original images."""

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdtable.data.detection.annotations import Annotated, ground_truth
from kdtable.distributed import SINGLE_PROCESS
from kdtable.models.detection.outputs import Detections, DetectorOutputs
from kdtable.recipes.metrics import DETECTION, METRICS
from kdtable.tasks.coco import NAMES, measured
from kdtable.tasks.detection import AveragePrecision
from tests.detection.small import two_images

pycocotools = pytest.importorskip("pycocotools.cocoeval")


def referee(truth: dict[str, Any], found: NDArray[np.float64]) -> dict[str, float]:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO()
        objects.dataset = truth
        objects.createIndex()
        evaluation = pycocotools.COCOeval(objects, objects.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True) if value > -1}


def random_set(seed: int, images: int = 12, classes: int = 4) -> tuple[list[Annotated], NDArray[np.float64]]:
    """Boxes of all sizes with some crowds and empty images, and detections near them and elsewhere, with ties."""
    draw = np.random.default_rng(seed)
    known, found = [], []
    for image in range(1, images + 1):
        count = int(draw.integers(0, 6))
        corners = draw.uniform(0, 300, (count, 2))
        sides = draw.uniform(4, 160, (count, 2))
        one = Annotated.plain((500, 500), np.hstack([corners, corners + sides]), draw.integers(0, classes, count))
        known.append(replace(one, crowds=draw.random(count) < 0.1, areas=one.areas * draw.uniform(0.5, 1, count)))
        for box, label in zip(known[-1].boxes, known[-1].labels, strict=True):
            for _ in range(int(draw.integers(0, 3))):
                left, top, right, bottom = box + draw.normal(0, 6, 4)
                shown = label if draw.random() < 0.8 else draw.integers(0, classes)
                score = round(float(draw.random()), 1)
                found.append([image, left, top, abs(right - left), abs(bottom - top), score, shown + 1])
        found += [[image, *draw.uniform(0, 200, 4), draw.random(), draw.integers(1, classes + 1)] for _ in range(2)]
    return known, np.array(found, dtype=np.float64)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_numbers_are_pycocotools(seed: int) -> None:
    known, found = random_set(seed)
    truth = ground_truth(known, 4)
    ours, theirs = measured(truth, found), referee(ground_truth(known, 4), found)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_no_detection_is_a_zero_and_no_box_is_no_number() -> None:
    known, _ = random_set(1)
    nothing = np.zeros((0, 7))
    zeros = measured(ground_truth(known, 4), nothing)
    assert zeros
    assert set(zeros.values()) == {0.0}
    empty = [Annotated.plain(one.size, [], []) for one in known]
    assert measured(ground_truth(empty, 4), nothing) == {}


def test_detections_count_in_the_pixels_of_the_original_image() -> None:
    """A box found in an image that was resized and filled up is the box of the original."""
    batch = two_images()
    batch = replace(batch, originals=((128, 32), (100, 128)))
    known = [
        Annotated.plain((128, 32), [(2, 8, 15, 60)], [1]),
        Annotated.plain((100, 128), [(20, 20, 60, 80)], [0]),
    ]
    found = (
        Detections(torch.tensor([[4.0, 4.0, 30.0, 30.0]]), torch.tensor([0.9]), torch.tensor([1])),
        Detections(torch.tensor([[10.0, 10.0, 30.0, 40.0]]), torch.tensor([0.8]), torch.tensor([0])),
    )
    meter = AveragePrecision(known, 3)
    meter.update(DetectorOutputs(dense=False, detections=found), batch)
    meter.merge(SINGLE_PROCESS)
    result = meter.result()
    assert (result["AP"], result["AP75"], result["AR100"]) == pytest.approx((1, 1, 1))
    other = AveragePrecision(known, 3)
    others = replace(found[1], labels=torch.tensor([2]))
    other.update(DetectorOutputs(dense=False, detections=(found[0], others)), batch)
    assert other.result()["AP"] == pytest.approx(0.5)


def test_tables_show_percent() -> None:
    assert [metric.name for metric in DETECTION[:6]] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert METRICS["AP"].shown(0.379) == pytest.approx(37.9)
    assert METRICS["AP"].higher_is_better
