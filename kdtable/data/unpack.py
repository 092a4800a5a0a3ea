"""Unpack data sets from archives that the user has; a set's folder appears only when it is complete."""

import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Final

from kdtable.data import tars
from kdtable.data.formats import cub200, image_folders, imagenet
from kdtable.data.spec import Listener, OnProgress
from kdtable.errors import BadRequest, Trouble
from kdtable.files.atomic import locked, sync

#: The published archive of CUB-200-2011, its MD5, and its numbers of classes, training and test images.
CUB_ARCHIVE: Final = "CUB_200_2011.tgz"
CUB_MD5: Final = "97eceeb196236b17998738112f37df78"
CUB_COUNTS: Final = (200, 5994, 5794)

_CUB_FILE: Final = re.compile(
    rf"(?:\./)?CUB_200_2011/(images/\w[^/]*/\w[^/]*\.jpg|{'|'.join(map(re.escape, cub200.INDEX))})"
)

#: More than twice the published images' size; a compressed archive could expand to any size.
_CUB_BYTES: Final = 3 * 2**30


def unpack(kind: str, source: Path, root: Path, listener: Listener, *, allow_unverified: bool = False) -> Path:
    """Unpack the set into ``root`` unless it is there; return its folder.

    Removes what a killed call left.

    Args:
        kind: ``imagenet`` or ``cub200``.
        source: folder of the official archives.
        root: folder of data sets.
        listener: callbacks.
        allow_unverified: accept archives with other checksums; the numbers of images must still be the official ones.

    Raises:
        Trouble: an archive is missing, damaged or another one, or the folder cannot be used.
    """
    final = root / kind
    try:
        with locked(root / ".fetch.lock", lambda: listener.notice(f"another process is fetching into {root}; waiting")):
            if final.exists():
                _check(kind, final)
                listener.notice(f"{final} was there already, and has all of its images")
            else:
                _unpack(kind, source, final, listener, verify=not allow_unverified)
    except OSError as error:
        raise Trouble(f"{kind} cannot be put into {root}: {error}") from error
    except BadRequest as error:
        raise Trouble(str(error)) from error
    return final


def _unpack(kind: str, source: Path, final: Path, listener: Listener, *, verify: bool) -> None:
    part = final.with_name(f".{kind}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        if kind == "imagenet":
            imagenet.unpack(source, part, imagenet.OFFICIAL, verify=verify, on_progress=listener.progress)
        else:
            _unpack_cub200(source / CUB_ARCHIVE, part, listener.progress, verify=verify)
        try:
            _check(kind, part)
        except BadRequest as error:
            raise BadRequest(f"what {source} gave is refused: {error}") from error
        os.sync()  # fsync of a million files, one by one, would take hours
        part.replace(final)
        sync(final.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack_cub200(path: Path, target: Path, on_progress: OnProgress, *, verify: bool) -> None:
    if not path.is_file():
        raise BadRequest(f"{path}: is not there; get it from https://data.caltech.edu/records/65de6-vp158")
    sizes: list[int] = []

    def name_of(info: tarfile.TarInfo) -> str | None:
        if (match := _CUB_FILE.fullmatch(info.name)) is None:
            return None
        sizes.append(info.size)
        if sum(sizes) > _CUB_BYTES:
            raise BadRequest(f"{path}: has more than {_CUB_BYTES} bytes of images")
        on_progress(len(sizes), sum(CUB_COUNTS[1:]) + len(cub200.INDEX))
        return match[1]

    with tars.opened(path, CUB_MD5 if verify else None, compressed=True) as tar:
        tars.extract(path, tar, target, name_of)


def _check(kind: str, folder: Path) -> None:
    """Raise `BadRequest` unless a set has the official numbers of classes and images."""
    official = imagenet.OFFICIAL
    wanted = (official.classes, official.train, official.val) if kind == "imagenet" else CUB_COUNTS
    listing = image_folders.listed(kind, folder)
    found = listing.num_classes, len(listing.train), len(listing.test)
    if found != wanted:
        raise BadRequest(
            f"{folder}: has {found[1]} training and {found[2]} test images of {found[0]} classes; expected "
            f"{wanted[1]}, {wanted[2]} and {wanted[0]}"
        )
