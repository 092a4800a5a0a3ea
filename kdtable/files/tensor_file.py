"""Files that ``torch.save`` wrote, read without trusting them.

A file may come from a stranger or from a failing disk. So it is read by one small parser that knows plain values and
dense tensors and nothing else: no name in the file is ever imported, no size in it is believed before it has been
compared with the bytes that are there, and what tensors there are is known before one of them takes memory. Both
formats are read, the zip archive of today and the plain stream from before torch 1.6.
"""

import io
import sys
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from kdtable.files.unpickle import (
    BadTensorFile,
    NeedsCode,
    Storage,
    Stored,
    described_storage,
    unpickle,
)
from kdtable.files.zips import open_zip

__all__ = ["BadTensorFile", "NeedsCode", "Stored", "TensorFile"]

#: A description of values and tensors is far smaller: that of a resnet110 with its optimiser takes 0.3 MB.
MAX_DESCRIPTION: Final = 8 * 1024**2

#: What a stream from before torch 1.6 begins with.
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001

#: Characters; a damaged file may have a name of millions.
_LONGEST_REASON: Final = 200

#: What a parser trips over when bytes are not what they should be.
_DAMAGE: Final = (
    OSError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
)

#: No checkpoint of the networks here comes near it; a larger file is neither read nor fetched to its end.
MAX_BYTES: Final = 4 * 1024**3


class TensorFile:
    """The content of a file, whose tensors are read when they are asked for.

    Attributes:
        described: the content with a :class:`Stored` in the place of every tensor.

    Args:
        file: open for reading in binary mode, for as long as tensors are read.

    Raises:
        NeedsCode: it holds more than plain values and dense tensors.
        BadTensorFile: it is truncated, damaged, or of another format.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._storages: dict[str, Tensor] = {}
        try:
            self._container = _Archive(file) if _is_zip(file) else _Stream(file)
            self.described = self._read(lambda stored: stored)
        except (*_DAMAGE, MemoryError) as error:  # no description of tensors takes much of it
            raise BadTensorFile(f"is truncated, damaged or no checkpoint ({_reason(error)})") from error

    def load(self) -> Any:
        """The content with its tensors, on the CPU.

        Raises:
            BadTensorFile: a tensor's bytes are damaged.
        """
        return self._read(self.tensor)

    def tensor(self, stored: Stored) -> Tensor:
        """A tensor of the content, on the CPU; tensors that share their numbers in the file share them here too.

        Raises:
            BadTensorFile: its bytes are damaged.
        """
        storage = stored.storage
        try:
            if storage.key not in self._storages:
                content = bytearray(self._container.content(storage))
                # torch.frombuffer takes no empty buffer.
                numbers = torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(0)
                self._storages[storage.key] = numbers.to(storage.dtype)
            return self._storages[storage.key].as_strided(stored.shape, stored.stride, stored.offset)
        except _DAMAGE as error:
            raise BadTensorFile(f"is damaged ({_reason(error)})") from error

    def check(self) -> None:
        """Read everything once, and compare it with the checksums that the format has (the old one has none).

        Raises:
            BadTensorFile: something is damaged.
        """
        try:
            self._container.check()
        except _DAMAGE as error:
            raise BadTensorFile(f"is damaged ({_reason(error)})") from error

    def _read(self, make: Callable[[Stored], Any]) -> Any:
        return unpickle(io.BytesIO(self._container.description), self._container.storage, make)


def _begins_well(head: BinaryIO) -> bool:
    try:
        return bool(unpickle(head) == _LEGACY_MAGIC and unpickle(head) == _LEGACY_PROTOCOL)
    except _DAMAGE:
        return False


def _once(claimed: dict[str, Storage], storage: Storage) -> Storage:
    """``storage``, which is described in one way only, however many tensors lie in it."""
    if claimed.setdefault(storage.key, storage) != storage:
        raise ValueError(f"storage {storage.key} is described in two ways")
    return storage


def _reason(error: Exception) -> str:
    text = str(error)[:_LONGEST_REASON] or type(error).__name__
    return text if text.isprintable() else repr(text)


def _is_zip(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


# --- the two formats -------------------------------------------------------------------------------------------------


class _Archive:
    """A zip archive: ``NAME/data.pkl`` describes the content, ``NAME/data/KEY`` holds the numbers."""

    def __init__(self, file: BinaryIO) -> None:
        size = file.seek(0, io.SEEK_END)
        self._zip = open_zip(file)
        entries = self._zip.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        self._claimed: dict[str, Storage] = {}
        # torch stores entries as they are. A compressed one could unfold to any size, and so could entries that
        # lie on top of each other.
        if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries):
            raise ValueError("an entry of its archive is compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("the entries of its archive claim more bytes than there are")
        (self._root,) = (name.removesuffix("data.pkl") for name in self._entries if _is_description(name))
        order = f"{self._root}byteorder"
        if order in self._entries and self._read(order) != sys.byteorder.encode():
            raise ValueError("its numbers have another machine's byte order")
        self.description = self._read(f"{self._root}data.pkl")

    def storage(self, pid: tuple[Any, ...]) -> Storage:
        kind, dtype, key, _, numel = pid
        storage = _once(self._claimed, described_storage(kind, dtype, key, numel))
        there = self._entries[self._name(storage)].file_size
        if there != storage.nbytes:
            raise ValueError(f"storage {key} has {there} bytes, and {storage.nbytes} are claimed")
        return storage

    def content(self, storage: Storage) -> bytes:
        return self._zip.read(self._name(storage))

    def _read(self, name: str) -> bytes:
        if self._entries[name].file_size > MAX_DESCRIPTION:
            raise ValueError("its description is too long")
        return self._zip.read(name)

    def check(self) -> None:
        if damaged := self._zip.testzip():
            raise ValueError(f"the checksum of {damaged!r} is wrong")

    def _name(self, storage: Storage) -> str:
        return f"{self._root}data/{storage.key}"


def _is_description(name: str) -> bool:
    return name.endswith("/data.pkl") and name.count("/") == 1


class _Stream:
    """Pickles one after another (magic, protocol, machine, content, keys), then the storages in the keys' order."""

    def __init__(self, file: BinaryIO) -> None:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = io.BytesIO(file.read(MAX_DESCRIPTION))
        self._file = file
        if not _begins_well(head):
            raise ValueError("it begins as no checkpoint does")
        if unpickle(head)["little_endian"] != (sys.byteorder == "little"):
            raise ValueError("its numbers have another machine's byte order")
        start = head.tell()
        self._claimed: dict[str, Storage] = {}
        unpickle(head, self.storage)
        self.description = head.getvalue()[start : head.tell()]
        keys = unpickle(head)
        if not all(isinstance(key, str) for key in keys):  # nests of lists would be compared without end
            raise TypeError("its list of storages is none")
        if sorted(keys) != sorted(self._claimed):
            raise ValueError("its list of storages does not fit its content")
        self._starts = self._places([self._claimed[key] for key in keys], head.tell(), size)

    def _places(self, storages: Iterable[Storage], position: int, size: int) -> dict[str, int]:
        """Where the numbers of each storage begin: behind their count, eight bytes."""
        starts = {}
        for storage in storages:
            self._file.seek(position)
            if int.from_bytes(self._file.read(8), sys.byteorder) != storage.numel:
                raise ValueError(f"storage {storage.key} has another length than is claimed")
            starts[storage.key] = position + 8
            position += 8 + storage.nbytes
        if position != size:
            raise ValueError(f"it has {size} bytes, and its content takes {position}")
        return starts

    def storage(self, pid: tuple[Any, ...]) -> Storage:
        kind, dtype, key, _, numel, view = pid
        if view is not None:
            raise ValueError("a storage is a part of another")
        return _once(self._claimed, described_storage(kind, dtype, key, numel))

    def content(self, storage: Storage) -> bytes:
        self._file.seek(self._starts[storage.key])
        return self._file.read(storage.nbytes)

    def check(self) -> None:
        """The format has no checksums."""
