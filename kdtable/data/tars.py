"""Read untrusted tar archives in one pass."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from kdtable.data.contents import MAX_FILE_BYTES
from kdtable.errors import BadRequest

_DAMAGE: Final = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError)


@contextmanager
def opened(path: Path, md5: str | None, *, compressed: bool = False) -> Iterator[tarfile.TarFile]:
    """Open an archive after comparing its checksum.

    Args:
        path: of the archive.
        md5: its checksum; ``None`` to skip the comparison.
        compressed: whether it is a gzip archive. Others are never decompressed: a small archive could expand to any
            size.

    Raises:
        BadRequest: it is damaged, not an archive, or another one.
        OSError: it cannot be read.
    """
    if md5 is not None:
        from torchvision.datasets.utils import calculate_md5

        if (found := calculate_md5(path, chunk_size=2**24)) != md5:
            raise BadRequest(
                f"{path}: its MD5 is {found}, and that of the official archive is {md5}; get it again, or accept this "
                "one with --allow-unverified"
            )
    source = cast(IO[bytes], gzip.GzipFile(path) if compressed else path.open("rb"))
    with source, _reading(source, f"{path}: no tar archive") as tar:
        yield tar
        while compressed and source.read(2**24):  # to the end, where gzip verifies its checksum
            pass


@contextmanager
def inner(where: Path, info: tarfile.TarInfo, tar: tarfile.TarFile) -> Iterator[tarfile.TarFile]:
    """Open an archive inside an archive."""
    content = tar.extractfile(check_file(where, info))
    assert content is not None  # since it is a file
    with _reading(content, f"{where}: its entry {info.name[:200]} is no tar archive") as found:
        yield found


@contextmanager
def _reading(file: IO[bytes], refusal: str) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            yield tar
    except _DAMAGE as error:
        raise BadRequest(f"{refusal}, or a damaged one ({error})") from error


def check_file(where: Path, info: tarfile.TarInfo, limit: int | None = None) -> tarfile.TarInfo:
    """Return the entry if it is a regular file.

    Raises:
        BadRequest: it is not a file, or has more than ``limit`` bytes.
    """
    # A sparse file may claim any size without taking space in the archive.
    if not info.isreg() or info.issparse():
        raise BadRequest(f"{where}: its entry {info.name[:200]} is a link, or no file")
    if limit is not None and info.size > limit:
        raise BadRequest(f"{where}: its entry {info.name[:200]} has {info.size} bytes, too many (at most {limit})")
    return info


def extract(where: Path, tar: tarfile.TarFile, target: Path, name_of: Callable[[tarfile.TarInfo], str | None]) -> None:
    """Extract an archive's images to disk.

    Args:
        where: the archive's path, for errors.
        tar: the archive.
        target: folder to extract into.
        name_of: returns an entry's name below ``target``; ``None`` to skip it.

    Raises:
        BadRequest: an entry is neither a file nor a folder, is too large, or would lead out of ``target``.
    """

    def chosen(info: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        if info.isdir() or (name := name_of(check_file(where, info, MAX_FILE_BYTES))) is None:
            return None
        return tarfile.data_filter(info.replace(name=name, deep=False), folder)

    tar.extractall(target, filter=chosen)
