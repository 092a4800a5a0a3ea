"""Zip archives that may come from strangers."""

import io
import zipfile
from typing import BinaryIO, Final

#: The directory of an archive with a hundred thousand entries; what is made of one in memory is ten times larger.
MAX_DIRECTORY: Final = 8 * 1024**2


class _Guarded(io.RawIOBase):
    """A file that refuses to read a long stretch at once, until it is released."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit: int | None = limit

    def release(self) -> None:
        self._limit = None

    def read(self, size: int = -1, /) -> bytes:
        if self._limit is not None and size > self._limit:
            raise zipfile.BadZipFile(f"its directory claims {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def open_zip(file: BinaryIO, max_directory: int | None = None) -> zipfile.ZipFile:
    """The archive in ``file``, whose directory has a reasonable size and names every entry once.

    Its entries are stored or deflated: the readers of other forms unfold what they are given as far as it goes.

    Args:
        file: that has it.
        max_directory: bytes of the directory; by default ``MAX_DIRECTORY``.

    Raises:
        BadZipFile: it has not, or it is no archive at all.
    """
    guarded = _Guarded(file, MAX_DIRECTORY if max_directory is None else max_directory)
    archive = zipfile.ZipFile(guarded)
    guarded.release()
    if len(set(archive.namelist())) != len(archive.infolist()):
        raise zipfile.BadZipFile("two of its entries have one name")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
        raise zipfile.BadZipFile("an entry is neither stored nor deflated")
    return archive
