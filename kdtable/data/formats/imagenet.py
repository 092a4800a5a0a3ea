"""Unpack ImageNet's official archives (ILSVRC 2012) into class folders.

``ILSVRC2012_img_train.tar`` has a tar archive per class. ``ILSVRC2012_img_val.tar`` has the validation images. Their
classes are in ``ILSVRC2012_devkit_t12.tar.gz``: ``ILSVRC2012_validation_ground_truth.txt`` has each image's class
number, ``meta.mat`` the wnid of each number.
"""

import io
import re
import tarfile
from dataclasses import dataclass
from itertools import count
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

#: Limit of a file of the devkit, which is read into memory.
_MAX_TEXT_BYTES: Final = 2**24

#: Images between two progress calls.
_STEP: Final = 1000


@dataclass(frozen=True, slots=True)
class Official:
    """The official archives: MD5 by file name, and numbers of classes and images."""

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
    """Unpack into the empty folder ``target`` as ``train/WNID/*.JPEG`` and ``val/WNID/*.JPEG``; images are not counted.

    Args:
        source: folder of the three archives.
        target: incomplete until this returns.
        official: checksums and numbers of the archives.
        verify: whether to compare checksums.
        on_progress: called with the numbers of images unpacked, and of all.

    Raises:
        BadRequest: an archive is missing, damaged or not the expected one.
        OSError: a file cannot be read or written.
    """
    if absent := [name for name in official.md5 if not (source / name).is_file()]:
        raise BadRequest(f"{source}: has no {' and no '.join(absent)}; get them from https://image-net.org")
    md5 = {name: md5 if verify else None for name, md5 in official.md5.items()}
    wnids = _truth(source / DEVKIT, md5[DEVKIT])
    total, numbers = official.train + official.val, count(1)

    def counted(name: str) -> str:
        if (done := next(numbers)) % _STEP == 0 or done == total:
            on_progress(done, total)
        return name

    def val_image(info: tarfile.TarInfo) -> str:
        match = _VAL_IMAGE.fullmatch(info.name)
        if match is None or not 1 <= int(match[2]) <= len(wnids):
            raise BadRequest(f"{source / VAL}: its entry {info.name[:200]} is none of {len(wnids)} validation images")
        return counted(f"{wnids[int(match[2]) - 1]}/{match[1]}")

    def train_image(info: tarfile.TarInfo) -> str:
        if (match := _IMAGE.fullmatch(info.name)) is None:
            raise BadRequest(f"{source / TRAIN}: in an archive of a class, {info.name[:200]} is no training image")
        return counted(match[1])

    with tars.opened(source / VAL, md5[VAL]) as tar:
        tars.extract(source / VAL, tar, target / "val", val_image)
    with tars.opened(source / TRAIN, md5[TRAIN]) as tar:
        for info in tar:
            if (match := _CLASS.fullmatch(info.name)) is None:
                raise BadRequest(f"{source / TRAIN}: its entry {info.name[:200]} is no archive of a class")
            with tars.inner(source / TRAIN, info, tar) as images:
                tars.extract(source / TRAIN, images, target / "train" / match[1], train_image)


def _truth(path: Path, md5: str | None) -> list[str]:
    """The wnid of each validation image, in order."""
    found: dict[str, bytes] = {}
    with tars.opened(path, md5, compressed=True) as tar:
        for info in tar:
            if (name := info.name.removeprefix("./")) in (META, TRUTH):
                content = tar.extractfile(tars.check_file(path, info, _MAX_TEXT_BYTES))
                found[name] = content.read() if content is not None else b""
    if absent := [name for name in (META, TRUTH) if name not in found]:
        raise BadRequest(f"{path}: has no {absent[0]}")
    wnids = _wnids(path, found[META])
    lines = found[TRUTH].decode("ascii", "replace").split()
    if odd := [line for line in lines if line not in wnids]:
        raise BadRequest(f"{path}: {TRUTH} has a class {odd[0][:20]}, which {META} lacks")
    return [wnids[line] for line in lines]


def _wnids(path: Path, content: bytes) -> dict[str, str]:
    """Wnids by class number, as text; only of leaf classes."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"])
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        wnids = {str(int(number)): str(wnid) for number, wnid, children in rows if int(children) == 0}
    except Exception as error:  # scipy raises many kinds on damaged bytes
        raise BadRequest(f"{path}: {META} is not the table of classes that it should be ({error})") from error
    if odd := [wnid for wnid in wnids.values() if not _WNID.fullmatch(wnid)]:
        raise BadRequest(f"{path}: {META} has a class that is no wnid, {odd[0][:20]}")
    return wnids
