"""Files by name, in an untrusted zip archive or folder. Nothing is unpacked to disk."""

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
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
        _check_size(self.where(name), entry.file_size)
        try:
            with self._archive.open(entry) as file:
                # Without a size, an entry would be expanded beyond what it claims.
                return file.read(entry.file_size)
        except Exception as error:  # zipfile raises a dozen kinds on damaged bytes
            raise BadRequest(f"{self.where(name)}: cannot be read ({error})") from error


class FolderTree:
    """The files of some subfolders.

    Attributes:
        names: as in `ZipTree`.
        key: SHA-256 of names, sizes and modification times.

    Raises:
        BadRequest: one of them is a link, pipe or device.
        OSError: a folder cannot be read.
    """

    def __init__(self, folder: Path, parts: Sequence[str]) -> None:
        self._folder = folder
        found = dict(entry for part in parts if (folder / part).exists() for entry in _files(folder, part))
        self.names = sorted(found)
        digest = hashlib.sha256()
        for name in self.names:
            state = found[name]
            digest.update(os.fsencode(name) + f"\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
        self.key = digest.hexdigest()

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self._folder / name)

    def read(self, name: str) -> bytes:
        """Read one of ``names``; `BadRequest` if it is gone or too large."""
        try:
            with (self._folder / name).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadRequest(f"{self.where(name)}: cannot be read ({error.strerror})") from error
        _check_size(self.where(name), len(content))
        return content


#: Files by name.
Tree = ZipTree | FolderTree


def _files(root: Path, part: str) -> Iterator[tuple[str, os.stat_result]]:
    """Names and stat results of the regular files in a subfolder, recursively."""
    with os.scandir(root / part) as entries:
        for entry in entries:
            name = f"{part}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _files(root, name)
            elif entry.is_file(follow_symlinks=False):
                yield name, entry.stat(follow_symlinks=False)
            else:
                raise BadRequest(f"{root / name}: is a link, or no file; put the file itself there")


def _check_size(where: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadRequest(f"{where}: has too many bytes for what it should be (at most {MAX_FILE_BYTES})")
