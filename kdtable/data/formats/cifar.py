"""CIFAR-10, CIFAR-100 and STL-10 by torchvision, which verifies the checksums of the archive and its files."""

import os
import shutil
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from kdtable.data.contents import Arrays
from kdtable.errors import BadRequest
from kdtable.files.atomic import locked


def read(name: str, root: Path) -> Arrays:
    """Read the images in ``root``; download them on first use.

    Raises:
        BadRequest: they are missing and cannot be downloaded, or a file is damaged.
    """
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name]
    parts = _parts(kind, root)
    if parts is None:
        try:
            with locked(root / f".{kind.base_folder}.lock"):
                parts = _parts(kind, root)  # another process may have installed them
                if parts is None:
                    _install(kind, root)
                    parts = _opened(kind, root)
        except (OSError, HTTPException, RuntimeError) as error:
            raise BadRequest(
                f"{kind.__name__} is not in {root} and could not be downloaded from {kind.url} ({error}): put "
                f"{kind.filename} into {root}, or name the folder that has it by KDTABLE_DATA or --data-root"
            ) from error
    return {
        f"{part}_{what}": array
        for part, content in zip(("train", "test"), parts, strict=True)
        for what, array in (
            ("images", _images(content)),
            ("labels", np.array(content.labels if name == "stl10" else content.targets, np.int64)),
        )
    }


def _images(content: Any) -> Any:
    """(N, 3, H, W) uint8, as STL-10 has them."""
    data = content.data
    return np.ascontiguousarray(data if data.shape[1] == 3 else data.transpose(0, 3, 1, 2))


def _parts(kind: Any, root: Path) -> tuple[Any, Any] | None:
    """The training and test parts; ``None`` if a file is missing, or its checksum is wrong."""
    try:
        return _opened(kind, root)
    except RuntimeError:
        return None


def _opened(kind: Any, root: Path) -> tuple[Any, Any]:
    """The training and test parts; the images of STL-10 without labels are left out."""
    if kind.__name__ == "STL10":
        return kind(root, split="train"), kind(root, split="test")
    return kind(root, train=True), kind(root, train=False)


def _install(kind: Any, root: Path) -> None:
    """Download the archive into ``root`` unless it is there, and unpack it, each in a staging folder, then renamed.

    A killed process therefore leaves only a staging folder, which the next one removes. The caller holds the lock.
    """
    from torchvision.datasets.utils import check_integrity, download_url, extract_archive

    archive, unpacked = root / kind.filename, root / kind.base_folder
    if archive.exists() and not check_integrity(archive, kind.tgz_md5):
        raise BadRequest(
            f"{archive}: is damaged (its MD5 is not {kind.tgz_md5}): delete it to have it downloaded again, "
            f"or put the archive of {kind.url} in its place"
        )
    staging = root / f".{kind.base_folder}.part"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        if not archive.exists():
            download_url(kind.url, staging, kind.filename, kind.tgz_md5)
            os.replace(staging / kind.filename, archive)
        if unpacked.exists():
            os.replace(unpacked, staging / "damaged")
        extract_archive(archive, staging)
        os.replace(staging / kind.base_folder, unpacked)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
