"""Detection sets in folders, by their kind. Does not import torch."""

from pathlib import Path

from kdtable.data.detection import coco, voc
from kdtable.data.detection.coco import Described


def read(kind: str, path: Path, *, skip: bool = False) -> Described:
    """Read the annotations of a set in COCO's (``coco``) or VOC's (``voc``) layout.

    Args:
        kind: see above.
        path: its folder.
        skip: mend what is wrong, or leave it out, instead of refusing it.

    Raises:
        BadRequest: a file is missing or malformed, or a box is wrong.
    """
    return voc.read(path, skip=skip) if kind == "voc" else coco.read(path, skip=skip)
