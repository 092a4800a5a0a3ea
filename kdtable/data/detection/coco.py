"""Read a folder in COCO's layout. Does not import torch.

``PATH`` holds the annotations, or its folder ``annotations`` does, and the folders of images:

    instances_train2017.json  instances_val2017.json  train2017/*.jpg  val2017/*.jpg
    instances_train.json      instances_val.json      train/*.jpg      val/*.jpg

Categories keep the order of their ids, which may have gaps; labels count from 0. Crowds neither teach nor count as
missed. Images without boxes stay.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from kdtable.data.detection.annotations import Annotated
from kdtable.errors import BadRequest, counted, several

#: Years in the names of files and folders; "" for a set of the user's own.
YEARS: Final = ("2017", "")
#: Pixels by which a box may reach over the image's edge before it counts as wrong: the official ones are rounded.
TOLERANCE: Final = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """A set's images and boxes, of COCO's layout or VOC's.

    Attributes:
        train: names of the training images' files, relative to the set's folder.
        test: the same of the validation images.
        boxes: of both parts, ``train`` and ``test``.
        classes: names of the categories.
        official: whether it is a published set, and not one of the user's own.
        sha256: of names, sizes in bytes and boxes.
        notes: sentences about what was left out.
        skipped: names of images that are left out.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    boxes: Mapping[str, tuple[Annotated, ...]]
    classes: tuple[str, ...]
    official: bool
    sha256: str
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


@lru_cache(maxsize=4)
def read(path: Path, *, skip: bool = False) -> Described:
    """Read and check the annotations of the set in ``path``.

    Args:
        path: the set's folder.
        skip: leave out boxes that are wrong and images that are not there, instead of refusing them.

    Raises:
        BadRequest: a file is missing or malformed, a box is wrong, or the parts have different categories.
    """
    year, files = _files(path)
    parts = [
        _Part(path / file, f"{name}{year}", skip, official=bool(year))
        for file, name in zip(files, ("train", "val"), strict=True)
    ]
    train, test = (part.read(path) for part in parts)
    if train.categories != test.categories:
        odd = sorted({*train.categories.values()} ^ {*test.categories.values()}) or ["the same names, with other ids"]
        raise BadRequest(f"{path}: train and val have different categories ({several(odd)}): give both the same")
    for part in (train, test):
        if not any(len(one.boxes) for one in part.boxes):
            raise BadRequest(f"{path / part.file} has no box: a detector cannot be trained or measured on it")
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(json.dumps([part.names, part.bytes]).encode())
        for one in part.boxes:
            digest.update(repr(one.size).encode())
            for array in (one.boxes, one.labels, one.crowds, one.areas):
                digest.update(array.tobytes())
    return Described(
        train=tuple(train.names),
        test=tuple(test.names),
        boxes={"train": tuple(train.boxes), "test": tuple(test.boxes)},
        classes=tuple(train.categories[key] for key in sorted(train.categories)),
        official=bool(year),
        sha256=digest.hexdigest(),
        notes=(*train.notes, *test.notes),
        skipped=(*train.skipped, *test.skipped),
    )


def _files(path: Path) -> tuple[str, tuple[str, str]]:
    """The year in the names, and the annotations of training and validation images, relative to the folder."""
    if not path.is_dir():
        raise BadRequest(f"{path}: no such folder")
    for folder in ("", "annotations/"):
        for year in YEARS:
            names = f"{folder}instances_train{year}.json", f"{folder}instances_val{year}.json"
            if all((path / name).is_file() for name in names):
                return year, names
    raise BadRequest(
        f"{path} is not in COCO's layout: it needs instances_train2017.json and instances_val2017.json, or "
        "instances_train.json and instances_val.json, itself or in its folder annotations"
    )


@dataclass(slots=True)
class _Part:
    """One part while it is read."""

    path: Path
    folder: str
    skip: bool
    official: bool
    names: list[str] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    boxes: list[Annotated] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        return self.path.name

    def read(self, root: Path) -> "_Part":
        content = _json(self.path)
        try:
            self.categories = {int(one["id"]): str(one["name"]) for one in content["categories"]}
            images = {int(one["id"]): one for one in content["images"]}
            objects = self._by_image(content["annotations"], images)
            if len(images) < len(content["images"]):
                raise BadRequest(f"{self.path}: two images have one id")
            present = self._present(root)
            numbers = {key: label for label, key in enumerate(sorted(self.categories))}
            for key in sorted(images):
                self._add(images[key], objects[key], numbers, present)
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(
                f"{self.path} is not in COCO's layout: {type(error).__name__} {error}; it needs images, annotations "
                "and categories with COCO's fields"
            ) from error
        if self.skipped:
            what = counted(len(self.skipped), "image")
            self.notes.append(f"{self.file}: {what} that cannot be found left out: {several(self.skipped)}")
        return self

    def _by_image(self, annotations: Sequence[Any], images: Mapping[int, Any]) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = defaultdict(list)
        for one in annotations:
            if int(one["image_id"]) not in images:
                raise BadRequest(
                    f"{self.path}: annotation {one.get('id')} is of image {one['image_id']}, which is not in its images"
                )
            if int(one["category_id"]) not in self.categories:
                raise BadRequest(
                    f"{self.path}: annotation {one.get('id')} is of category {one['category_id']}, which is not in "
                    "its categories"
                )
            found[int(one["image_id"])].append(one)
        return found

    def _present(self, root: Path) -> dict[str, int]:
        """Names and sizes in bytes of the image files."""
        try:
            with os.scandir(root / self.folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except OSError as error:
            raise BadRequest(f"{root / self.folder}: the folder of images cannot be read ({error.strerror})") from error

    def _add(
        self, image: Mapping[str, Any], objects: Sequence[Any], labels: Mapping[int, int], present: Mapping[str, int]
    ) -> None:
        name, size = str(image["file_name"]), (int(image["height"]), int(image["width"]))
        if name not in present:
            if not self.skip:
                raise BadRequest(
                    f"{self.path} lists {name}, which is not in {self.folder}: put it there, or leave out what is "
                    "missing with --skip-unreadable"
                )
            self.skipped.append(f"{self.folder}/{name}")
            return
        kept = [(one, box) for one in objects if (box := self._box(one, name, size)) is not None]
        corners = np.array([box for _, box in kept], dtype=np.float32).reshape(-1, 4)
        sides = (corners[:, 2:] - corners[:, :2]).astype(np.float64)
        own = [float(one.get("area", area)) for (one, _), area in zip(kept, sides.prod(axis=1), strict=True)]
        self.names.append(f"{self.folder}/{name}")
        self.bytes.append(present[name])
        self.boxes.append(
            Annotated(
                size,
                corners,
                np.array([labels[int(one["category_id"])] for one, _ in kept], dtype=np.int64),
                np.array([bool(one.get("iscrowd", 0)) for one, _ in kept], dtype=np.bool_),
                np.array(own, dtype=np.float64),
            )
        )

    def _box(self, one: Mapping[str, Any], name: str, size: tuple[int, int]) -> tuple[float, ...] | None:
        """Left, top, right and bottom within the image; ``None`` for a wrong box that is left out."""
        left, top, width, height = (float(value) for value in one["bbox"])
        corners = max(0.0, left), max(0.0, top), min(size[1], left + width), min(size[0], top + height)
        over = max(-left, -top, left + width - size[1], top + height - size[0])
        # Not the sides: a side far below a pixel vanishes in float32.
        ends = np.array(corners, dtype=np.float32)
        empty = not (np.isfinite(ends).all() and ends[2] > ends[0] and ends[3] > ends[1])
        if not empty and over <= TOLERANCE:
            return corners
        if self.skip or self.official:
            return None if empty else corners
        pixels = f"{size[1]} x {size[0]} pixels"
        what = "has no area" if width <= 0 or height <= 0 else f"reaches out of the image of {pixels}"
        raise BadRequest(
            f"{self.path}: the box {[left, top, width, height]} of {name} {what}: correct it, or mend such boxes with "
            "--skip-unreadable"
        )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path}: not a JSON file, or cut short ({error})") from error
