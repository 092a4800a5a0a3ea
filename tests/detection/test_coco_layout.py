"""Folders in COCO's layout: crowds, gaps, empty images, and bad input in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdtable import data
from kdtable.data.detection import coco
from kdtable.data.detection.sets import DetectionSet, load
from kdtable.errors import BadRequest, Trouble
from tests.detection.small import CPU

TREES = Path(__file__).parents[3] / "shared/data/trees"


def annotation(image: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"id": 100 * image + len(more), "image_id": image, "category_id": 7, "bbox": box, "area": 5.0, **more}


def content() -> dict[str, Any]:
    """Two images: one with a box, one of another category and a crowd; one image without any."""
    return {
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
        "images": [{"id": n, "file_name": f"{n}.png", "height": 20 + n, "width": 30} for n in (5, 1, 2)],
        "annotations": [
            annotation(1, [1, 2, 10, 12]),
            annotation(5, [0, 0, 30, 25], category_id=3),
            annotation(5, [4, 4, 8, 8], iscrowd=1, area=60.0),
        ],
    }


def write(root: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, year: str = "") -> Path:
    """A set whose training part is changed; images are of one colour."""
    for part in ("train", "val"):
        whole = content()
        if part == "train":
            change(whole)
        folder = root / f"{part}{year}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in (1, 2, 5):
            Image.new("RGB", (30, 20 + number), (number, 10, 20)).save(folder / f"{number}.png")
        notes = root / ("annotations" if year else "")
        notes.mkdir(exist_ok=True)
        (notes / f"instances_{part}{year}.json").write_text(json.dumps(whole))
    return root


def test_ids_with_gaps_crowds_and_empty_images(tmp_path: Path) -> None:
    spec = data.resolve(f"coco:{write(tmp_path)}")
    assert (spec.num_classes, spec.classes, spec.train_count, spec.test_count) == (2, ("ant", "cat"), 3, 3)
    assert (spec.task, spec.image_size) == ("detection", 25)
    found = load(spec)
    first, second, third = found.boxes("train")  # in the order of their ids: 1, 2, 5
    assert (first.boxes.tolist(), first.labels.tolist(), first.areas.tolist()) == ([[1, 2, 11, 14]], [1], [5.0])
    assert second.boxes.shape == (0, 4)
    assert (third.labels.tolist(), third.crowds.tolist(), third.size) == ([0, 1], [False, True], (25, 30))
    (batch,) = found.evaluation_batches("train", 8, CPU)
    assert [len(boxes) for boxes in batch.boxes] == [1, 0, 1]
    assert torch.equal(batch.images[2, :, 3, 3], torch.tensor([5.0, 10.0, 20.0]) / 255)


def test_the_official_layout(tmp_path: Path) -> None:
    """Its boxes may reach over the edge or be empty: they are clipped or left out."""

    def change(whole: dict[str, Any]) -> None:
        whole["annotations"] += [annotation(1, [20, 2, 40, 5], x=1), annotation(2, [3, 3, 0, 4])]

    spec = data.resolve(f"coco:{write(tmp_path, change, year='2017')}")
    assert spec.image_size == 800
    one, two, _ = load(spec).boxes("train")
    assert one.boxes.tolist() == [[1, 2, 11, 14], [20, 2, 30, 7]]
    assert len(two.boxes) == 0


BAD = {
    "zero size": (lambda c: c["annotations"].append(annotation(2, [3, 3, 0, 4])), "box.* of 2.png has no area"),
    "outside": (lambda c: c["annotations"].append(annotation(2, [25, 3, 9, 4])), "of 2.png reaches out.* 30 x 22 pix"),
    "no number": (lambda c: c["annotations"].append(annotation(2, [float("nan"), 3, 9, 4])), "of 2.png"),
    "stranger": (
        lambda c: c["annotations"].append(annotation(9, [1, 1, 2, 2])),
        "of image 9, which is not in its images",
    ),
    "category": (lambda c: c["annotations"][0].update(category_id=4), "category 4, which is not in its categories"),
    "missing": (lambda c: c["images"].append({**c["images"][0], "id": 6, "file_name": "six.png"}), "lists six.png"),
    "twice": (lambda c: c["images"].append(c["images"][0]), "two images have one id"),
    "other classes": (lambda c: c["categories"].append({"id": 9, "name": "dog"}), r"different categories \(dog\)"),
    "no box": (lambda c: c["annotations"].clear(), "has no box"),
    "layout": (lambda c: c.pop("images"), "not in COCO's layout"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str, tmp_path: Path) -> None:
    change, expected = BAD[name]
    with pytest.raises(BadRequest, match=expected):
        data.resolve(f"coco:{write(tmp_path, change)}")


def test_wrong_boxes_and_missing_images_can_be_left_out(tmp_path: Path) -> None:
    def change(whole: dict[str, Any]) -> None:
        whole["annotations"] += [annotation(2, [3, 3, 0, 4]), annotation(1, [25, 3, 9, 4])]
        whole["images"].append({**whole["images"][0], "id": 6, "file_name": "six.png"})

    spec = data.resolve(f"coco:{write(tmp_path, change)}", skip_unreadable=True)
    assert spec.skipped == ("train/six.png",)
    assert "six.png" in " ".join(spec.notes)
    assert [len(one.boxes) for one in load(spec).boxes("train")] == [2, 0, 2]
    assert load(spec).boxes("train")[0].boxes[1].tolist() == [25, 3, 30, 7]


def test_a_folder_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="needs instances_train2017"):
        data.resolve(f"coco:{tmp_path}")
    with pytest.raises(BadRequest, match="no such folder"):
        data.resolve(f"coco:{tmp_path / 'nothing'}")
    write(tmp_path)
    (tmp_path / "instances_val.json").write_text("{")
    with pytest.raises(BadRequest, match="not a JSON file"):
        data.resolve(f"coco:{tmp_path}")


def test_an_image_of_another_size_than_said(tmp_path: Path) -> None:
    found = load(data.resolve(f"coco:{write(tmp_path)}"))
    Image.new("RGB", (9, 9)).save(tmp_path / "train/2.png")
    with pytest.raises(Trouble, match="9 x 9 pixels, and its annotations say 30 x 22"):
        list(found.evaluation_batches("train", 8, CPU))


def test_contents_decide_the_identity(tmp_path: Path) -> None:
    before = data.resolve(f"coco:{write(tmp_path / 'a')}")
    assert data.resolve(f"coco:{write(tmp_path / 'b')}").identity() == before.identity()

    def moved(whole: dict[str, Any]) -> None:
        whole["annotations"][0]["bbox"][0] = 2

    coco.read.cache_clear()
    after = data.resolve(f"coco:{write(tmp_path / 'a', moved)}")
    assert after.identity() != before.identity()
    with pytest.raises(BadRequest, match="has changed while it was in use"):
        load(before)


def test_many_images_are_decoded_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the same images."""
    from kdtable.data.detection import files

    spec = data.resolve(f"coco:{write(tmp_path)}")
    kept = list(load(spec).evaluation_batches("train", 2, CPU))
    monkeypatch.setattr(files, "KEEP_BYTES", 0)
    monkeypatch.setattr(files, "default_workers", lambda _: 0)
    for one, other in zip(kept, load(spec).evaluation_batches("train", 2, CPU), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.skipif(not TREES.is_dir(), reason="the photographs in ../shared are not here")
def test_real_photographs() -> None:
    spec = data.resolve(f"coco:{TREES}")
    assert (spec.num_classes, spec.train_count, spec.test_count, spec.image_size) == (1, 60, 16, 256)
    found: DetectionSet = load(spec)
    assert sum(len(one.boxes) for one in found.boxes("train")) == 481
    assert sum(len(one.boxes) for one in found.boxes("test")) == 243
    (first, *_) = found.evaluation_batches("test", 4, CPU)
    assert first.images.shape == (4, 3, 256, 256)
    assert 0.1 < float(first.images.mean()) < 0.9
    assert np.all(first.boxes[0].numpy() <= 256)


# --- VOC


def write_voc(root: Path, box: tuple[int, int, int, int] = (1, 1, 30, 20), name: str = "cat") -> Path:
    for year, listed, images in (("VOC2007", "trainval", "ab"), ("VOC2007", "test", "c"), ("VOC2012", "trainval", "d")):
        for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
            (root / "VOCdevkit" / year / folder).mkdir(parents=True, exist_ok=True)
        (root / "VOCdevkit" / year / "ImageSets/Main" / f"{listed}.txt").write_text("\n".join(images))
        for number, image in enumerate(images):
            Image.new("RGB", (30, 20)).save(root / "VOCdevkit" / year / "JPEGImages" / f"{image}.jpg")
            sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            objects = "".join(
                f"<object><name>{what}</name><difficult>{hard}</difficult><bndbox>{sides}</bndbox></object>"
                for what, hard in ((name, 0), ("person", 1))[: 2 - number]
            )
            (root / "VOCdevkit" / year / "Annotations" / f"{image}.xml").write_text(
                f"<annotation><size><width>30</width><height>20</height></size>{objects}</annotation>"
            )
    return root


def test_both_years_of_voc(tmp_path: Path) -> None:
    """Boxes count from 1 and include the last pixel; difficult objects are no more than crowds."""
    spec = data.resolve(f"voc:{write_voc(tmp_path)}", image_size=20)
    assert (spec.task, spec.num_classes, spec.train_count, spec.test_count) == ("detection", 20, 3, 1)
    first, second, third = load(spec).boxes("train")
    assert first.boxes.tolist() == [[0, 0, 30, 20]] * 2
    assert first.labels.tolist() == [7, 14]
    assert first.crowds.tolist() == [False, True]
    assert (len(second.labels), len(third.labels)) == (1, 2)
    (batch,) = load(spec).evaluation_batches("train", 8, CPU)
    assert [labels.tolist() for labels in batch.labels] == [[7], [7], [7]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"box": (5, 5, 40, 10)}, "of a cat is not in the image of 30 x 20"), ({"name": "ant"}, "unknown class 'ant'")],
)
def test_bad_annotations_of_voc(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=expected):
        data.resolve(f"voc:{write_voc(tmp_path, **change)}")


def test_what_voc_needs(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="needs VOC2007"):
        data.resolve(f"voc:{tmp_path}")
    write_voc(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/d.jpg").unlink()
    with pytest.raises(BadRequest, match=r"d\.jpg: no such image"):
        data.resolve(f"voc:{tmp_path}")
    assert data.resolve(f"voc:{tmp_path}", skip_unreadable=True).train_count == 2
