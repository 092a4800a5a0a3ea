"""Read untrusted files that ``torch.save`` wrote.

Torch reads them with ``weights_only=True`` and so runs no code. This module checks what torch does not: an archive's
checksums, sizes before memory is allocated, and pickles that expand (:mod:`kdtable.files.pickles`). Objects beside the
weights, such as a NumPy scalar or a training script's arguments, become an :class:`Inert`.
"""

import io
import sys
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, ClassVar, Final

import torch

from kdtable.errors import several
from kdtable.files.pickles import PLAIN, STORAGES, Pickle, look_at

#: Limit of a pickle that describes values and tensors, in bytes; for a resnet110 with its optimiser it has 0.3 MB.
MAX_DESCRIPTION: Final = 8 * 1024**2

#: The magic number and the version at the start of a stream from before torch 1.6.
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001

#: Modules and functions that only a malicious file names.
_CODE: Final = frozenset(
    {"os", "posix", "nt", "sys", "subprocess", "shutil", "runpy", "importlib", "pty", "socket", "webbrowser", "ctypes"}
    | {"pickle", "marshal", "code", "codeop"}
    | {f"builtins.{name}" for name in ("eval", "exec", "compile", "getattr", "setattr", "__import__", "open", "input")}
)

#: The bit that marks a folder in an archive's directory.
_FOLDER: Final = 0x10

#: Guards ``safe_globals``, which is one set for the whole process.
_LOCK: Final = threading.Lock()


class BadTensorFile(Exception):
    """Not a file of tensors, or a damaged one; the text gives the reason without the file's name."""


class NeedsCode(BadTensorFile):
    """The file has objects that only running code from it could restore."""


class Inert(list[Any]):
    """A stand-in for an object of a class or function that torch does not know; it does nothing.

    It is a list, since torch appends items to no other class.
    """

    name: ClassVar[str] = ""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Drop the object's state."""

    def __hash__(self) -> int:  # type: ignore[override]  # hashed by identity
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return type(self).name


class InertMapping:
    """A stand-in for a class whose objects get items by key, which torch allows for few classes only."""

    def __new__(cls, *_: object, **__: object) -> Any:
        """Return a dict."""
        return OrderedDict()


class Archive:
    """A zip archive: ``NAME/data.pkl`` describes the content, ``NAME/data/KEY`` has the raw values."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile) -> None:
        self._file, self._zip = file, archive
        # Torch finds entries in any case.
        self._entries = {entry.filename.lower(): entry for entry in archive.infolist()}
        (self._root,) = (name.removesuffix("data.pkl") for name in self._entries if is_description(name))
        if f"{self._root}constants.pkl" in self._entries:
            raise BadTensorFile("is TorchScript, a program with its weights: save its state_dict() with torch.save")
        # Torch never compresses entries; torch and zipfile may read a compressed one differently.
        if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in archive.infolist()):
            raise ValueError("an entry of its archive is compressed")
        # Torch returns uninitialised memory for a tensor whose entry is marked as a folder.
        if any(entry.is_dir() or entry.external_attr & _FOLDER for entry in archive.infolist()):
            raise ValueError("an entry of its archive is a folder")
        if len(self._entries) < len(archive.namelist()) or not all(n.startswith(self._root) for n in self._entries):
            raise ValueError("the entries of its archive can be understood in two ways")
        # Torch crashes when it swaps the bytes of tensors on the meta device, which have none.
        if f"{self._root}byteorder" in self._entries and self._text("byteorder") != sys.byteorder.encode():
            raise ValueError("its numbers have another machine's byte order")
        seen = look_at(io.BytesIO(self._text("data.pkl")))
        self._compare(seen)
        self._stand_ins = self._foreign(seen)
        self.described = self._read("meta")

    def load(self) -> Any:
        """Load the content, tensors on the CPU."""
        return self._read("cpu")

    def check(self) -> None:
        """Verify all checksums, which torch does not."""
        if damaged := self._zip.testzip():
            raise ValueError(f"the checksum of {damaged!r} is wrong")

    def _text(self, name: str) -> bytes:
        entry = self._entries[self._root + name]
        if entry.file_size > MAX_DESCRIPTION:
            raise ValueError("its description is too long")
        with self._zip.open(entry) as file:
            return file.read(entry.file_size)

    def _compare(self, seen: Pickle) -> None:
        for key, (kind, numel, _) in seen.storages.items():
            there, claimed = self._entries[f"{self._root}data/{key}".lower()].file_size, numel * STORAGES[kind].itemsize
            if there != claimed:
                raise ValueError(f"storage {key} has {there} bytes, and {claimed} are claimed")

    def _foreign(self, seen: Pickle) -> list[tuple[type, str]]:
        """Stand-ins for the names that torch does not know."""
        self._file.seek(0)
        unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(self._file))
        foreign = seen.names - PLAIN
        if code := {name for name in foreign if name in _CODE or name.partition(".")[0] in _CODE}:
            raise NeedsCode(f"holds objects that only running code from the file could restore ({_some(code)})")
        if made := foreign - unsafe:  # torch would create them, of any size
            raise NeedsCode(f"holds what is neither a dense tensor nor a plain value ({_some(made)})")
        return [
            (type("Stands", (InertMapping if name in seen.mappings else Inert,), {"name": name}), name)
            for name in sorted(foreign)
        ]

    def _read(self, device: str) -> Any:
        self._file.seek(0)
        with _reading(), torch.serialization.safe_globals(self._stand_ins):  # type: ignore[arg-type]
            return torch.load(self._file, map_location=device, weights_only=True)


class Stream:
    """The format from before torch 1.6, which has no checksums.

    A sequence of pickles (magic, protocol, machine, content, keys), then the storages in the keys' order.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        file.seek(0)
        head = io.BytesIO(file.read(MAX_DESCRIPTION))
        if look_at(head).content != _MAGIC or look_at(head).content != _PROTOCOL:
            raise ValueError("it begins as no file of torch does")
        look_at(head)  # skip the machine's
        seen, keys = look_at(head), look_at(head).content
        if foreign := seen.names - PLAIN:
            raise NeedsCode(
                f"holds objects beside its tensors ({_some(foreign)}), which only running code from the file could "
                "restore, in torch's format from before 1.6"
            )
        if any(rest != (None,) for _, _, rest in seen.storages.values()):
            raise ValueError("a storage is a part of another")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise TypeError("its list of storages is none")
        if sorted(keys) != sorted(seen.storages):
            raise ValueError("its list of storages does not fit its content")
        takes = sum(8 + numel * STORAGES[kind].itemsize for kind, numel, _ in seen.storages.values())
        if head.tell() + takes != size:
            raise ValueError(f"it has {size} bytes, and its content takes {head.tell() + takes}")
        self.described = self._read("meta")

    def load(self) -> Any:
        """Load the content, tensors on the CPU."""
        return self._read("cpu")

    def check(self) -> None:
        """Do nothing: the format has no checksums."""

    def _read(self, device: str) -> Any:
        self._file.seek(0)
        with _reading():
            return torch.load(self._file, map_location=device, weights_only=True)


def is_description(name: str) -> bool:
    """Whether an archive's entry is torch's description of the content."""
    return name.endswith("/data.pkl") and name.count("/") == 1


@contextmanager
def _reading() -> Iterator[None]:
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of pickle protocols that it does not write
        yield


def _some(names: Iterable[str]) -> str:
    return several(sorted(name[:60] if name.isprintable() else repr(name[:60]) for name in names))
