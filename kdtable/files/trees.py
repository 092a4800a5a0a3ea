"""Files by name, in a zip archive or in a folder that may come from strangers. Nothing is ever unpacked."""

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final

from kdtable.errors import BadRequest

#: Of one file; a photograph of 64 x 64 pixels takes a few thousand.
MAX_FILE_BYTES: Final = 2**22

#: Of an archive; it is read into memory as a whole.
MAX_ARCHIVE_BYTES: Final = 2**30

#: Twice that of an archive with 120,000 entries of 60 letters; what is made of it in memory is ten times larger.
MAX_DIRECTORY: Final = 2**25


class Content(io.BytesIO):
    """The bytes of an archive, of which no reader takes more than a directory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            BadZipFile: so many bytes were asked for as only the head of a forged archive claims.
        """
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory claims {size} bytes")
        return super().read(size)


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """The archive in ``file``, which names every entry once.

    Its entries are stored or deflated: the readers of other forms unfold what they are given as far as it goes.

    Raises:
        BadZipFile: it has not, or it is no archive at all; zipfile raises other errors too.
    """
    archive = zipfile.ZipFile(file)
    if len(set(archive.namelist())) != len(archive.infolist()):
        raise zipfile.BadZipFile("two of its entries have one name")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
        raise zipfile.BadZipFile("an entry is neither stored nor deflated")
    return archive


class ZipTree:
    """The files below the folder ``top`` of a zip archive.

    Attributes:
        key: SHA-256 of the archive. Whether it is one is not looked at before ``names`` is: `BadRequest` if it is none,
            or is cut short, or an entry could lead out of it.

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
            content = file.read(size)
        self.key = hashlib.sha256(content).hexdigest()
        self._content = Content(content)

    @cached_property
    def names(self) -> list[str]:
        """Of all files, sorted, with slashes between folders."""
        for entry in self._archive.infolist():
            name = entry.filename
            if name.startswith("/") or ".." in name.split("/") or stat.S_ISLNK(entry.external_attr >> 16):
                raise BadRequest(f"{self._path}: its entry {name} is a link or leads out of the archive")
        within = (name for name in self._archive.namelist() if name.startswith(f"{self._top}/") and name[-1] != "/")
        return sorted(name.removeprefix(f"{self._top}/") for name in within)

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            return open_zip(self._content)
        except Exception as error:  # zipfile lets pass a dozen kinds on damaged bytes
            raise BadRequest(f"{self._path}: no zip archive, or cut short ({error})") from error

    def where(self, name: str) -> str:
        """What errors call a file: the archive, and the file in it."""
        return f"{self._path}/{name}"

    def read(self, name: str) -> bytes:
        """The content of one of ``names``; `BadRequest` if it is damaged (the checksum is compared) or too large."""
        entry = self._archive.getinfo(f"{self._top}/{name}")
        _check_size(self.where(name), entry.file_size)
        try:
            with self._archive.open(entry) as file:
                # Without the number, an entry would be unfolded as far as it goes, whatever it claims.
                return file.read(entry.file_size)
        except Exception as error:  # zipfile lets pass a dozen kinds on damaged bytes
            raise BadRequest(f"{self.where(name)}: cannot be read ({error})") from error


class FolderTree:
    """The files of some subfolders.

    Attributes:
        names: as those of `ZipTree`.
        key: changes with names, sizes and times of change; 64 hex digits.

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
        """The content of one of ``names``; `BadRequest` if it is gone or too large."""
        try:
            with (self._folder / name).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadRequest(f"{self.where(name)}: cannot be read ({error.strerror})") from error
        _check_size(self.where(name), len(content))
        return content


#: Named files.
Tree = ZipTree | FolderTree


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
