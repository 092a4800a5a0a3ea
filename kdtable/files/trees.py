"""Files by name in an untrusted zip archive. Nothing is unpacked to disk."""

import hashlib
import io
import os
import stat
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Final

from kdtable.errors import BadRequest
from kdtable.files.zips import open_zip

#: Limit of one file; an image of 64 x 64 pixels takes a few thousand bytes.
MAX_FILE_BYTES: Final = 2**22

#: Limit of an archive, which is read into memory as a whole.
MAX_ARCHIVE_BYTES: Final = 2**30

#: Limit of an archive's directory: twice that of 120,000 entries of 60 letters. Parsed, it takes ten times the memory.
MAX_DIRECTORY: Final = 2**25


class ZipTree:
    """The files below the folder ``top`` of a zip archive.

    The archive is parsed when ``names`` is first read: `BadRequest` if it is malformed, truncated, or an entry could
    lead out of it.

    Attributes:
        key: SHA-256 of the archive.

    Raises:
        BadRequest: it is too large.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, top: str) -> None:
        self._path, self._top = path, top
        # hash and decode the same bytes: the file may change in between
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_ARCHIVE_BYTES:
                raise BadRequest(f"{path}: has {size} bytes, more than it should (at most {MAX_ARCHIVE_BYTES})")
            content = file.read(size)
        self.key = hashlib.sha256(content).hexdigest()
        self._content = io.BytesIO(content)

    @cached_property
    def names(self) -> list[str]:
        """Names of all files, sorted, with slashes between folders."""
        for entry in self._archive.infolist():
            name = entry.filename
            if name.startswith("/") or ".." in name.split("/") or stat.S_ISLNK(entry.external_attr >> 16):
                raise BadRequest(f"{self._path}: its entry {name} is a link or leads out of the archive")
        within = (name for name in self._archive.namelist() if name.startswith(f"{self._top}/") and name[-1] != "/")
        return sorted(name.removeprefix(f"{self._top}/") for name in within)

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            return open_zip(self._content, MAX_DIRECTORY)
        except Exception as error:  # zipfile raises a dozen kinds on damaged bytes
            raise BadRequest(f"{self._path}: no zip archive, or cut short ({error})") from error

    def where(self, name: str) -> str:
        """The file's name in errors: the archive's path, and the path in it."""
        return f"{self._path}/{name}"

    def read(self, name: str) -> bytes:
        """Read one of ``names`` and verify its checksum; `BadRequest` if it is damaged or too large."""
        entry = self._archive.getinfo(f"{self._top}/{name}")
        if entry.file_size > MAX_FILE_BYTES:
            raise BadRequest(f"{self.where(name)}: has too many bytes for what it should be (at most {MAX_FILE_BYTES})")
        try:
            with self._archive.open(entry) as file:
                # Without a size, an entry would be expanded beyond what it claims.
                return file.read(entry.file_size)
        except Exception as error:  # zipfile raises a dozen kinds on damaged bytes
            raise BadRequest(f"{self.where(name)}: cannot be read ({error})") from error
