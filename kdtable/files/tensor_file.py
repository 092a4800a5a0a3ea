"""Read untrusted or damaged files of tensors: detect the format, check it, load the content."""

import io
import json
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from torch import Tensor

from kdtable.files.array_files import Npz, Safetensors
from kdtable.files.torch_files import Archive, BadTensorFile, Inert, NeedsCode, Stream, is_description
from kdtable.files.zips import open_zip

__all__ = ["MAX_BYTES", "BadTensorFile", "Inert", "NeedsCode", "TensorFile", "safetensors_bytes"]

#: Characters of an error's reason; a damaged file may contain a name of millions.
_LONGEST_REASON: Final = 200

#: Far more than any network's checkpoint here; larger files are neither read nor fetched to the end.
MAX_BYTES: Final = 4 * 1024**3

_LONGEST_START: Final = 300

#: Other formats by their first bytes, in lower case.
_OTHERS: Final = {
    b"version https://git-lfs": "is a Git-LFS pointer, not the file it points to: get that with 'git lfs pull'",
    b"<!doctype html": "is a web page, not a file of weights: download it from the address behind the page's button",
    b"<html": "is a web page, not a file of weights: download it from the address behind the page's button",
    b"<?xml": "is XML, as servers send with an error, not a file of weights: download it again",
    b"\x89hdf\r\n": "is HDF5, as Keras writes: save the weights with torch.save or as safetensors",
    b"\x93numpy": "is a single NumPy array: save the weights as npz, an array for each tensor",
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
}


class TensorFile:
    """A file of tensors, which are read on request.

    Supports ``torch.save``'s archives, its streams from before torch 1.6, safetensors and npz, whatever the file's
    name. Never runs code from the file.

    Example:
        with path.open("rb") as file:
            tensors = TensorFile(file).load()

    Attributes:
        described: the content, with every tensor on the meta device, where it takes no memory.
        metadata: texts by name; only safetensors have any.

    Args:
        file: open for reading in binary mode, as long as tensors are read.
        limit: largest size in bytes, also once unpacked; by default ``MAX_BYTES``.

    Raises:
        NeedsCode: it has objects that only running code could restore.
        BadTensorFile: it is truncated, damaged, or of another format.
    """

    def __init__(self, file: BinaryIO, limit: int | None = None) -> None:
        try:
            self._format = _opened(file, limit or MAX_BYTES)
        except BadTensorFile:
            raise
        except Exception as error:  # parsers raise many kinds; MemoryError is not among them, as descriptions are small
            raise BadTensorFile(f"is truncated, damaged or no checkpoint ({_reason(error)})") from error
        self.described: Any = self._format.described
        self.metadata: Mapping[str, str] = self._format.metadata if isinstance(self._format, Safetensors) else {}

    def load(self) -> Any:
        """Load the content, tensors on the CPU.

        Raises:
            BadTensorFile: a tensor's bytes are damaged.
            MemoryError: memory ran out.
        """
        try:
            return self._format.load()
        except Exception as error:
            raise _integrity_error(error) from error

    def check(self) -> None:
        """Verify the format's checksums, if it has any.

        Raises:
            BadTensorFile: the file is damaged.
        """
        try:
            self._format.check()
        except Exception as error:
            raise _integrity_error(error) from error


def _opened(file: BinaryIO, limit: int) -> Archive | Stream | Safetensors | Npz:
    size = file.seek(0, io.SEEK_END)
    if size > limit:
        raise BadTensorFile(f"is refused: it has {size} bytes, more than the {limit} that are read here")
    file.seek(0)
    start = file.read(_LONGEST_START)
    for magic, what in _OTHERS.items():
        if start.lstrip().lower().startswith(magic):
            raise BadTensorFile(what)
    if start[257:262] == b"ustar":
        raise BadTensorFile("is a tar archive: unpack it first")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return Safetensors(file, size)
    if not start.startswith(b"PK\x03\x04"):
        return Stream(file, size)
    archive = open_zip(file)
    claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > limit:
        raise ValueError(f"the entries of its archive claim {claimed} bytes, more than {limit}")
    if any(name.endswith(".npy") for name in archive.namelist()):
        return Npz(file, archive)
    if not any(map(is_description, archive.namelist())):
        raise BadTensorFile("is a zip archive without weights: unpack it first")
    return Archive(file, archive)


def _integrity_error(error: Exception) -> Exception:
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return MemoryError(str(error))
    return BadTensorFile(f"is damaged ({_reason(error)})")


def _reason(error: Exception) -> str:
    text = (str(error).partition("\n")[0] or type(error).__name__)[:_LONGEST_REASON]
    return text if text.isprintable() else repr(text)


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Serialize ``tensors`` (on the CPU) as safetensors; the same content gives the same bytes.

    The library itself writes metadata in varying order.
    """
    from safetensors.torch import save

    content = save(dict(tensors))
    length = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:length])
    texts = json.dumps({"__metadata__": dict(sorted(metadata.items())), **head}, separators=(",", ":")).encode()
    texts += b" " * (-len(texts) % 8)
    return b"".join([len(texts).to_bytes(8, "little"), texts, content[length:]])
