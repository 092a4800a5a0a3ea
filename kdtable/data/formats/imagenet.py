"""ImageNet's official archives (ILSVRC 2012), brought into folders by class.

``ILSVRC2012_img_train.tar`` has a tar archive for each class; ``ILSVRC2012_img_val.tar`` has the validation images,
whose classes ``ILSVRC2012_devkit_t12.tar.gz`` gives: a number for each image in
``ILSVRC2012_validation_ground_truth.txt``, and the wnid of each number in ``meta.mat``.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kdtable.data import tars
from kdtable.data.spec import OnProgress
from kdtable.errors import BadRequest

TRAIN: Final = "ILSVRC2012_img_train.tar"
VAL: Final = "ILSVRC2012_img_val.tar"
DEVKIT: Final = "ILSVRC2012_devkit_t12.tar.gz"

META: Final = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH: Final = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"

_WNID: Final = re.compile(r"n\d{8}")
_CLASS: Final = re.compile(r"(?:\./)?(n\d{8})\.tar")
_IMAGE: Final = re.compile(r"(?:\./)?(n\d{8}_\d+\.JPEG)")
_VAL_IMAGE: Final = re.compile(r"(?:\./)?(ILSVRC2012_val_(\d{8})\.JPEG)")

#: Images between two calls of the listener.
_STEP: Final = 1000


@dataclass(frozen=True, slots=True)
class Official:
    """What the official archives are known by: MD5 by name, and the numbers of what is in them."""

    md5: dict[str, str]
    classes: int
    train: int
    val: int


OFFICIAL: Final = Official(
    {
        TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
        VAL: "29b22e2961454d5413ddabcf34fc5622",
        DEVKIT: "fa75699e90414af021442c21a62c3abf",
    },
    classes=1000,
    train=1_281_167,
    val=50_000,
)


def unpack(source: Path, target: Path, official: Official, *, verify: bool, on_progress: OnProgress) -> None:
    """Fill the empty folder ``target`` with ``train/WNID/*.JPEG`` and ``val/WNID/*.JPEG``.

    Args:
        source: folder of the three archives.
        target: is worth nothing before this returns.
        official: what they must be.
        verify: whether their checksums are compared.
        told: how many images of how many are there.

    Raises:
        BadRequest: an archive is missing or damaged, or not what it should be.
        OSError: the disk does not allow it.
    """
    if absent := [name for name in official.md5 if not (source / name).is_file()]:
        raise BadRequest(f"{source}: has no {' and no '.join(absent)}; get them from https://image-net.org")
    md5 = {name: md5 if verify else None for name, md5 in official.md5.items()}
    count = _Counter(official.train + official.val, on_progress)
    wnids = _truth(source / DEVKIT, md5[DEVKIT])
    if len(wnids) != official.val:
        raise BadRequest(f"{source / DEVKIT}: gives {len(wnids)} validation images a class; expected {official.val}")
    _unpack_val(source / VAL, md5[VAL], target / "val", wnids, count)
    _unpack_train(source / TRAIN, md5[TRAIN], target / "train", count)
    found = {folder.name for folder in (target / "train").iterdir()}
    images = count.done - official.val
    if len(found) != official.classes or images != official.train:
        raise BadRequest(
            f"{source / TRAIN}: has {images} images of {len(found)} classes; expected {official.train} of "
            f"{official.classes}"
        )
    if found != set(wnids):
        raise BadRequest(f"{source}: the classes of {TRAIN} and {VAL} differ")


class _Counter:
    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self.done, self._total, self._report_progress = 0, total, on_progress

    def add(self) -> None:
        self.done += 1
        if self.done % _STEP == 0 or self.done == self._total:
            self._report_progress(self.done, self._total)


def _truth(path: Path, md5: str | None) -> list[str]:
    """The wnid of each validation image, in their order."""
    found: dict[str, bytes] = {}
    with tars.opened(path, md5, compressed=True) as tar:
        for name, size, content in tars.files(path, tar):
            if name.removeprefix("./") in (META, TRUTH):
                found[name.removeprefix("./")] = tars.text(path, name, size, content)
    if absent := [name for name in (META, TRUTH) if name not in found]:
        raise BadRequest(f"{path}: has no {absent[0]}")
    wnids = _wnids(path, found[META])
    lines = found[TRUTH].decode("ascii", "replace").split()
    if odd := [line for line in lines if line not in wnids]:
        raise BadRequest(f"{path}: {TRUTH} has a class {odd[0][:20]}, which {META} lacks")
    return [wnids[line] for line in lines]


def _wnids(path: Path, content: bytes) -> dict[str, str]:
    """Wnids by number as it is written in the ground truth; only of classes that have no others below them."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"])
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        wnids = {str(int(number)): str(wnid) for number, wnid, children in rows if int(children) == 0}
    except Exception as error:  # scipy has errors of its own, and lets pass those of what it is built on
        raise BadRequest(f"{path}: {META} is not the table of classes that it should be ({error})") from error
    if odd := [wnid for wnid in wnids.values() if not _WNID.fullmatch(wnid)]:
        raise BadRequest(f"{path}: {META} has a class that is no wnid, {odd[0][:20]}")
    return wnids


def _unpack_val(path: Path, md5: str | None, target: Path, wnids: Sequence[str], count: _Counter) -> None:
    for wnid in set(wnids):
        (target / wnid).mkdir(parents=True)
    with tars.opened(path, md5) as tar:
        for name, size, content in tars.files(path, tar):
            match = _VAL_IMAGE.fullmatch(name)
            if match is None or not 1 <= int(match[2]) <= len(wnids):
                raise BadRequest(f"{path}: its entry {name[:200]} is none of {len(wnids)} validation images")
            tars.write(path, name, size, content, target / wnids[int(match[2]) - 1] / match[1])
            count.add()
    if count.done != len(wnids):
        raise BadRequest(f"{path}: has {count.done} images; expected {len(wnids)}")


def _unpack_train(path: Path, md5: str | None, target: Path, count: _Counter) -> None:
    with tars.opened(path, md5) as tar:
        for name, _, content in tars.files(path, tar):
            wnid = _CLASS.fullmatch(name)
            if wnid is None:
                raise BadRequest(f"{path}: its entry {name[:200]} is no archive of a class")
            (target / wnid[1]).mkdir(parents=True)
            with tars.inner(path, name, content) as images:
                for image, size, pixels in tars.files(path, images):
                    match = _IMAGE.fullmatch(image)
                    if match is None:
                        raise BadRequest(f"{path}: the entry {image[:200]} of its {name} is no training image")
                    tars.write(path, image, size, pixels, target / wnid[1] / match[1])
                    count.add()
