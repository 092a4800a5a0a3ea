"""Miniatures of the official archives of ImageNet and CUB-200-2011, in their layouts."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.io import savemat

from kdtable.data.formats import imagenet
from kdtable.data.formats.imagenet import (
    DEVKIT,
    META,
    TRAIN,
    TRUTH,
    VAL,
    Official,
)
from kdtable.data.unpack import CUB_ARCHIVE
from tests.data.photos import cub_files, jpeg

#: In the order of their numbers in the devkit, which is not that of their names.
WNIDS = ("n00000003", "n00000001", "n00000002")

#: Two training images of each class; the classes of the validation images.
TRUTH_NUMBERS = (2, 1, 3, 1)

Files = Mapping[str, bytes | tarfile.TarInfo]


def tar_of(files: Files, mode: str = "w") -> bytes:
    """An archive of contents, and of entries as they are, by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def train_files() -> dict[str, dict[str, bytes]]:
    """Contents by archive of a class, by name."""
    return {f"{wnid}.tar": {f"{wnid}_{n}.JPEG": jpeg(10 * k + n) for n in (7, 12)} for k, wnid in enumerate(WNIDS)}


def val_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{number:08}.JPEG": jpeg(100 + number) for number in range(1, len(TRUTH_NUMBERS) + 1)}


def meta() -> bytes:
    """The table of classes; the last one has others below it."""
    rows = [(number, wnid, "words", 0) for number, wnid in enumerate(WNIDS, start=1)] + [(4, "n09999999", "all", 3)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    return buffer.getvalue()


def devkit_files() -> dict[str, bytes]:
    truth = "".join(f"{number}\n" for number in TRUTH_NUMBERS).encode()
    return {"ILSVRC2012_devkit_t12/readme.txt": b"read me", META: meta(), TRUTH: truth}


def write_imagenet(
    folder: Path,
    train: Mapping[str, Files] | None = None,
    val: Files | None = None,
    devkit: Files | None = None,
) -> Official:
    """The three archives, and what they are known by."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = {name: tar_of(files) for name, files in (train or train_files()).items()}
    (folder / TRAIN).write_bytes(tar_of(classes))
    (folder / VAL).write_bytes(tar_of(val or val_files()))
    (folder / DEVKIT).write_bytes(tar_of(devkit or devkit_files(), "w:gz"))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in imagenet.OFFICIAL.md5}
    return Official(md5, classes=3, train=6, val=4)


def write_cub(folder: Path, changes: Mapping[str, bytes | tarfile.TarInfo | None] | None = None) -> str:
    """The archive with entries replaced, or left out for ``None``; its MD5."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes | tarfile.TarInfo | None] = {
        "attributes.txt": b"of birds",
        "CUB_200_2011/README": b"read me",
        "CUB_200_2011/images/001.Bird_0/._Bird_0.jpg": b"of macOS",
        **{f"CUB_200_2011/{name}": content for name, content in cub_files().items()},
        **(changes or {}),
    }
    content = tar_of({name: value for name, value in files.items() if value is not None}, "w:gz")
    (folder / CUB_ARCHIVE).write_bytes(content)
    return hashlib.md5(content).hexdigest()
