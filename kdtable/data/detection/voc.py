"""Read PASCAL VOC 2007 and 2012. Does not import torch.

``PATH`` holds ``VOC2007`` and, if it is there, ``VOC2012``, or is the folder above ``VOCdevkit``. ``trainval`` of both
years are the training images, and 2007's ``test`` is the test set. Boxes count pixels from 1 and include the last one.
Difficult objects neither teach nor count as missed, as in VOC's own evaluation.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import numpy as np

from kdtable.data.detection.annotations import Annotated
from kdtable.data.detection.coco import Described
from kdtable.errors import BadRequest

CLASSES: Final = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
#: Lists of images by part, with the years that they are of; 2012 has no boxes of its test images.
PARTS: Final = {"train": (("VOC2007", "trainval"), ("VOC2012", "trainval")), "test": (("VOC2007", "test"),)}


@lru_cache(maxsize=2)
def read(path: Path, *, skip: bool = False) -> Described:
    """Read and check the annotations of both years.

    Args:
        path: the folder.
        skip: leave out images that are not there, instead of refusing them.

    Raises:
        BadRequest: a file is missing or malformed.
    """
    root = path / "VOCdevkit" if (path / "VOCdevkit").is_dir() else path
    if not (root / "VOC2007").is_dir():
        raise BadRequest(f"{path} is not in VOC's layout: it needs VOC2007 (and VOC2012), itself or in VOCdevkit")
    names: dict[str, list[str]] = {"train": [], "test": []}
    known: dict[str, list[Annotated]] = {"train": [], "test": []}
    skipped: list[str] = []
    digest = hashlib.sha256()
    for part, years in PARTS.items():
        for year, listed in years:
            for image in _listed(root / year / "ImageSets" / "Main" / f"{listed}.txt", needed=year == "VOC2007"):
                file = root / year / "JPEGImages" / f"{image}.jpg"
                if not file.is_file():
                    if not skip:
                        raise BadRequest(f"{file}: no such image; put it there, or use --skip-unreadable")
                    skipped.append(file.relative_to(path).as_posix())
                    continue
                one = _annotated(root / year / "Annotations" / f"{image}.xml")
                names[part].append(file.relative_to(path).as_posix())
                known[part].append(one)
                digest.update(json.dumps([part, year, image, file.stat().st_size, one.size]).encode())
                for array in (one.boxes, one.labels, one.crowds):
                    digest.update(array.tobytes())
    notes = (f"{len(skipped)} images that cannot be found are left out",) if skipped else ()
    return Described(
        tuple(names["train"]),
        tuple(names["test"]),
        {part: tuple(found) for part, found in known.items()},
        CLASSES,
        official=True,
        sha256=digest.hexdigest(),
        notes=notes,
        skipped=tuple(skipped),
    )


def _listed(file: Path, *, needed: bool) -> Iterator[str]:
    if not file.is_file():
        if needed:
            raise BadRequest(f"{file}: no such list of images")
        return
    yield from (line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def _annotated(file: Path) -> Annotated:
    try:
        root = ElementTree.parse(file).getroot()
        size = int(root.findtext("size/height", "")), int(root.findtext("size/width", ""))
        objects = [_object(one, size) for one in root.iter("object")]
    except OSError as error:
        raise BadRequest(f"{file}: cannot be read ({error.strerror})") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise BadRequest(f"{file}: not an annotation of VOC ({error})") from error
    plain = Annotated.plain(size, [box for box, _, _ in objects], [label for _, label, _ in objects])
    difficult = np.array([hard for _, _, hard in objects], dtype=np.bool_)
    return Annotated(size, plain.boxes, plain.labels, difficult, plain.areas)


def _object(one: ElementTree.Element, size: tuple[int, int]) -> tuple[tuple[float, ...], int, bool]:
    """Box, class and whether it is difficult."""
    name = one.findtext("name", "")
    if name not in CLASSES:
        raise ValueError(f"unknown class '{name}'")
    left, top, right, bottom = (float(one.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
    box = left - 1, top - 1, right, bottom
    if not (0 <= box[0] < box[2] <= size[1] and 0 <= box[1] < box[3] <= size[0]):
        raise ValueError(
            f"the box {[left, top, right, bottom]} of a {name} is not in the image of {size[1]} x {size[0]}"
        )
    return box, CLASSES.index(name), one.findtext("difficult", "0").strip() == "1"
