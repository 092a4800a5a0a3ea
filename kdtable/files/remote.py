"""Files at URLs (``s3://``, ``gs://``, ``file://``), by fsspec."""

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from kdtable.errors import BadRequest
from kdtable.files.atomic import written_whole

#: Packages of the extra ``cloud``, by scheme.
PACKAGES: Final = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


class Mismatch(Exception):
    """What a URL holds is not what was written there."""


def folder_url(text: str) -> str:
    """The URL of a folder that a user names by a URL or a path.

    Raises:
        BadRequest: it has a password.
    """
    if "://" not in text:
        return f"file://{Path(text).expanduser().absolute()}"
    if urlsplit(text).password:
        raise BadRequest(
            "the URL of --checkpoints has a password, which the store would keep: configure the service's own package"
        )
    return text.rstrip("/")


def lasting_url(text: str) -> str:
    """As :func:`folder_url`, of a folder that outlives this process.

    Raises:
        BadRequest: it does not, or it has a password.
    """
    if text.startswith("memory:"):
        raise BadRequest("--checkpoints memory:// is gone when the command ends: name a folder, s3:// or gs://")
    return folder_url(text)


def check_writable(url: str) -> None:
    """Write a small file into the folder at a URL, read it and remove it.

    Raises:
        BadRequest: an unknown scheme, a missing package, or the folder cannot be used.
    """
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise BadRequest(
            f"--checkpoints {url} has the unknown scheme '{scheme}': use a folder, s3://BUCKET/NAME or gs://BUCKET/NAME"
        ) from None
    except ImportError as error:
        package = PACKAGES.get(scheme)
        need = f"{package}: pip install 'kdtable[cloud]'" if package else f"another package: {_first_line(error)}"
        raise BadRequest(f"--checkpoints {url} needs {need}") from None
    probe = f"{url}/.kdtable-{uuid4().hex}"
    try:
        with TemporaryDirectory() as name:
            file = Path(name) / "probe"
            file.write_bytes(b"kdtable")
            upload(file, probe)
            download(probe, file, digest(file))
            remove(probe)
    except OSError as error:
        raise BadRequest(
            f"--checkpoints {url} cannot be written to ({error.strerror}): see to that, or name another place"
        ) from error


def upload(source: Path, url: str) -> None:
    """Write a file to a URL, on a disk as durably as all our files.

    Raises:
        OSError: it cannot be written; ``filename`` is the URL.
    """
    with _opened(url) as (system, path):
        if _is_local(system):
            with source.open("rb") as content, written_whole(Path(path)) as file:
                shutil.copyfileobj(content, file)
            return
        system.put_file(str(source), path)
        if (size := system.size(path)) != source.stat().st_size:
            raise OSError(errno.EIO, f"{size} bytes arrived of {source.stat().st_size}")


def download(url: str, target: Path, sha256: str) -> None:
    """Read a file at a URL into ``target``, which appears whole or not at all.

    Raises:
        Mismatch: its content has another checksum.
        OSError: it cannot be read or written; `FileNotFoundError` if it is gone.
    """
    with _opened(url) as (system, path), system.open(path, "rb") as content, written_whole(target) as file:
        shutil.copyfileobj(content, file)
        file.flush()
        if digest(Path(file.name)) != sha256:
            raise Mismatch(f"{url} is damaged")


def remove(url: str, *, with_folder: bool = False) -> None:
    """Remove the file at a URL, if it is there, and its folder, if that is empty.

    Raises:
        OSError: it cannot be removed.
    """
    with suppress(FileNotFoundError), _opened(url) as (system, path):
        system.rm_file(path)
    if with_folder:
        with suppress(OSError), _opened(url) as (system, path):
            if _is_local(system):  # elsewhere folders are parts of names
                Path(path).parent.rmdir()


def size_of(url: str) -> int | None:
    """The size of the file at a URL in bytes; ``None`` if it is gone.

    Raises:
        OSError: nothing can be said of it.
    """
    try:
        with _opened(url) as (system, path):
            return int(system.size(path))
    except FileNotFoundError:
        return None


def digest(file: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it; whatever a package raises in the block becomes an `OSError`."""
    from fsspec.core import url_to_fs

    try:
        yield url_to_fs(url)
    except (MemoryError, Mismatch):
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "it is not there", url) from error
    except Exception as error:
        told = isinstance(error, OSError) and error.strerror
        raise OSError(getattr(error, "errno", None) or errno.EIO, told or _first_line(error), url) from error


def _is_local(system: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(system, LocalFileSystem)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
