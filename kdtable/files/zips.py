"""Open untrusted zip archives."""

import io
import zipfile
from typing import BinaryIO, Final

#: Size of a directory with a hundred thousand entries. Parsed, it takes ten times as much memory.
MAX_DIRECTORY: Final = 8 * 1024**2


class _Guarded(io.RawIOBase):
    """A file that refuses to read more than ``limit`` bytes at once, until it is released."""

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


def open_zip(file: BinaryIO, limit: int | None = None) -> zipfile.ZipFile:
    """Open the zip archive in ``file``.

    Its directory has at most ``limit`` bytes, by default ``MAX_DIRECTORY``. Entries must have distinct names, and be
    stored or deflated: readers of other formats expand without a limit.

    Raises:
        BadZipFile: the archive is not like that, or not one at all.
    """
    guarded = _Guarded(file, limit or MAX_DIRECTORY)
    archive = zipfile.ZipFile(guarded)
    guarded.release()
    if len(set(archive.namelist())) != len(archive.infolist()):
        raise zipfile.BadZipFile("two of its entries have one name")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
        raise zipfile.BadZipFile("an entry is neither stored nor deflated")
    return archive
