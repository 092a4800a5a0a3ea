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
        with tars.opened(archive, None) as tar:
            info = next((info for info in tar if f"/{info.name}".endswith(f"/{member}")), None)
            if info is None:
                raise SourceFailed(f"there is no {member} in the archive")
            file = tar.extractfile(tars.check_file(archive, info, MAX_BYTES))
            assert file is not None  # since it is a file
            with target.open("wb") as output:
                shutil.copyfileobj(file, output)
    except BadRequest as error:
        raise SourceFailed(str(error)) from error
