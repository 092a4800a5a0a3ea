"""Files by name, in a zip archive or in a folder that may come from strangers. Nothing is ever unpacked."""

import hashlib
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from kdtable.errors import BadRequest
from kdtable.files.zips import open_zip

#: Of one file; a photograph of 64 x 64 pixels takes a few thousand.
MAX_FILE_BYTES: Final = 2**22

#: Of an archive; it is read into memory as a whole.
MAX_ARCHIVE_BYTES: Final = 2**30

#: Twice that of an archive with 120,000 entries of 60 letters.
MAX_DIRECTORY: Final = 2**25

# what zipfile raises on damaged bytes
_DAMAGE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError)


class Tree(Protocol):
    """Named files.

    Attributes:
        names: of all files, sorted, with slashes between folders.
        key: changes with the files; 64 hex digits.
    """

    @property
    def names(self) -> Sequence[str]:
        """See the class."""

    @property
    def key(self) -> str:
        """See the class."""

    def where(self, name: str) -> str:
        """What errors call a file."""

    def read(self, name: str) -> bytes:
        """The content of one of ``names``; `BadRequest` if it is damaged, too large or gone."""


class ZipTree:
    """The files below the folder ``top`` of a zip archive; ``key`` is the archive's SHA-256.

    Whether it is an archive is not looked at before ``names`` is: `BadRequest` if it is none, or is cut short, or an
    entry could lead out of it.

    Raises:
        BadRequest: it is too large.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, top: str) -> None:
        self._path, self._top = path, top
        # hashed and decoded from the same bytes: the file may change in between
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_ARCHIVE_BYTES:
                raise BadRequest(f"{path}: has {size} bytes, more than it should (at most {MAX_ARCHIVE_BYTES})")
            self._content = file.read(size)
        self.key = hashlib.sha256(self._content).hexdigest()

    @cached_property
    def names(self) -> list[str]:
        """See `Tree`."""
        return sorted(self._entries)

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            return open_zip(io.BytesIO(self._content), MAX_DIRECTORY)
        except _DAMAGE as error:
            raise BadRequest(f"{self._path}: no zip archive, or cut short ({error})") from error

    @cached_property
    def _entries(self) -> dict[str, zipfile.ZipInfo]:
        found = {}
        for entry in self._archive.infolist():
            name = entry.filename
            if name.startswith("/") or ".." in name.split("/") or stat.S_ISLNK(entry.external_attr >> 16):
                raise BadRequest(f"{self._path}: its entry {name} is a link or leads out of the archive")
            if name.startswith(f"{self._top}/") and not entry.is_dir():
                found[name.removeprefix(f"{self._top}/")] = entry
        return found

    def where(self, name: str) -> str:
        """The archive, and the file in it."""
        return f"{self._path}/{name}"

    def read(self, name: str) -> bytes:
        """See `Tree`; the entry's checksum is compared."""
        entry = self._entries[name]
        _check_size(self.where(name), entry.file_size)
        try:
            with self._archive.open(entry) as file:
                # Without the number, an entry would be unfolded as far as it goes, whatever it claims.
                return file.read(entry.file_size)
        except _DAMAGE as error:
            raise BadRequest(f"{self.where(name)}: cannot be read ({error})") from error


class FolderTree:
    """The files of some subfolders; ``key`` is made of their names, sizes and times of change.

    Raises:
        BadRequest: a link, pipe or device is among them.
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
        """See `Tree`."""
        try:
            with (self._folder / name).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadRequest(f"{self.where(name)}: cannot be read ({error.strerror})") from error
        _check_size(self.where(name), len(content))
        return content


def _files(root: Path, part: str) -> Iterator[tuple[str, os.stat_result]]:
    """Names and states of the regular files in a subfolder and below."""
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
