"""Extract one file from a tar archive."""

import shutil
from pathlib import Path

from kdtable.data import tars
from kdtable.errors import BadRequest
from kdtable.files.download import SourceFailed
from kdtable.files.tensor_file import MAX_BYTES


def extract(archive: Path, member: str, target: Path) -> None:
    """Write the member whose path ends in ``member`` to the file ``target``; nothing else is extracted.

    Raises:
        SourceFailed: the archive is damaged or not a tar archive, or has no such regular file.
    """
    try:
        _extract(archive, member, target)
    except BadRequest as error:
        raise SourceFailed(str(error)) from error


def _extract(archive: Path, member: str, target: Path) -> None:
    with tars.opened(archive, None) as tar:
        for info in tar:
            if not f"/{info.name}".endswith(f"/{member}"):
                continue
            # A sparse file may claim any size without taking space in the archive.
            file = tar.extractfile(info) if info.isreg() and not info.issparse() else None
            if file is None:
                raise SourceFailed(f"{member} is not a regular file in the archive")
            if info.size > MAX_BYTES:
                raise SourceFailed(f"{member} has {info.size} bytes, more than any teacher here ({MAX_BYTES})")
            with target.open("wb") as output:
                shutil.copyfileobj(file, output)
            return
    raise SourceFailed(f"there is no {member} in the archive")
