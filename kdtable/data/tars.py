"""Tar archives that may come from strangers, read once from their start to their end."""

import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from kdtable.data.contents import MAX_FILE_BYTES
from kdtable.errors import BadRequest

#: Of a file that is read into memory.
MAX_TEXT_BYTES: Final = 2**24

#: Bytes that are read at once where nothing is done with them.
_PART: Final = 2**24

_DAMAGE: Final = (tarfile.TarError, EOFError, zlib.error, ValueError)


class _Hashed:
    """A file whose MD5 is made of what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.md5(usedforsecurity=False)  # there is no other checksum of these archives

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._digest.update(content)
        return content

    def md5(self) -> str:
        """Of the whole file, whatever has been read of it."""
        while self.read(_PART):
            pass
        return self._digest.hexdigest()


@contextmanager
def opened(path: Path, md5: str | None, *, compressed: bool = False) -> Iterator[tarfile.TarFile]:
    """An archive, whose checksum is compared at the end of the block: until then nothing in it is to be trusted.

    Args:
        path: of the archive.
        md5: its checksum; ``None`` where any will do.
        compressed: whether it is compressed by gzip. What is not said to be is not decompressed: a small archive could
            unfold to any size.

    Raises:
        BadRequest: it is damaged, or none, or another one.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        hashed = _Hashed(file) if md5 else None
        source = file if hashed is None else cast(IO[bytes], hashed)  # of which tarfile only reads
        try:
            with _begun(source, compressed) as tar:
                yield tar
        except _DAMAGE as error:
            raise BadRequest(f"{path}: no tar archive, or a damaged one ({error})") from error
        if hashed is not None and (found := hashed.md5()) != md5:
            raise BadRequest(
                f"{path}: its MD5 is {found}, and that of the official archive is {md5}; get it again, or accept this "
                "one with --allow-unverified"
            )


def _begun(source: IO[bytes], compressed: bool) -> tarfile.TarFile:
    if compressed:
        return tarfile.open(fileobj=source, mode="r|gz")
    return tarfile.open(fileobj=source, mode="r|")


def files(where: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of each file; each is read before the next is asked for.

    Raises:
        BadRequest: something is neither a file nor a folder.
    """
    for info in tar:
        if info.isdir():
            continue
        # A sparse file may claim any size and take no room in the archive.
        content = tar.extractfile(info) if info.isreg() and not info.issparse() else None
        if content is None:
            raise BadRequest(f"{where}: its entry {info.name[:200]} is a link, or no file")
        yield info.name, info.size, content


@contextmanager
def inner(where: Path, name: str, content: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """An archive inside an archive."""
    try:
        with tarfile.open(fileobj=content, mode="r|") as tar:
            yield tar
    except _DAMAGE as error:
        raise BadRequest(f"{where}: its entry {name[:200]} is no tar archive, or a damaged one ({error})") from error


def write(where: Path, name: str, size: int, content: IO[bytes], target: Path) -> None:
    """Bring a file of an archive onto the disk, where there must be none of its name yet."""
    if size > MAX_FILE_BYTES:
        raise BadRequest(f"{where}: its entry {name[:200]} has {size} bytes, too many (at most {MAX_FILE_BYTES})")
    try:
        with target.open("xb") as file:
            shutil.copyfileobj(content, file)
    except FileExistsError as error:
        raise BadRequest(f"{where}: has two entries {name[:200]}") from error


def text(where: Path, name: str, size: int, content: IO[bytes]) -> bytes:
    """A small file of an archive."""
    if size > MAX_TEXT_BYTES:
        raise BadRequest(f"{where}: its entry {name[:200]} has {size} bytes, too many (at most {MAX_TEXT_BYTES})")
    return content.read()
