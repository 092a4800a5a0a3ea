"""File formats of named arrays that cannot hold code: safetensors and NumPy's npz."""

import json
import math
import zipfile
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from torch import Tensor

from kdtable.files.torch_files import MAX_DESCRIPTION, NeedsCode

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Safetensors:
    """A safetensors file, which has no checksums of its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_DESCRIPTION:
            raise ValueError("its header is too long")
        head = json.loads(file.read(length))
        self.metadata: dict[str, str] = head.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in self.metadata.values()):
            raise TypeError("its metadata are no texts")
        self.described = {key: _claimed(entry) for key, entry in head.items()}
        takes = sum(tensor.nbytes for tensor in self.described.values())
        if 8 + length + takes != size:
            raise ValueError(f"it has {size} bytes, and its content takes {8 + length + takes}")

    def load(self) -> dict[str, Tensor]:
        """Load the tensors by name."""
        from safetensors.torch import load

        self._file.seek(0)
        tensors = load(self._file.read())
        if {key: (value.shape, value.dtype) for key, value in tensors.items()} != {
            key: (value.shape, value.dtype) for key, value in self.described.items()
        }:
            raise ValueError("its header can be understood in two ways")
        return tensors

    def check(self) -> None:
        """Do nothing: the format has no checksums."""


def _claimed(entry: Any) -> Tensor:
    if any(type(n) is not int or n < 0 for n in entry["shape"]):
        raise ValueError("a tensor has an impossible shape")
    return torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")


class Npz:
    """An npz archive; arrays are never unpickled."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile) -> None:
        self._file, self._zip = file, archive
        self.described = {
            entry.filename.removesuffix(".npy"): self._array(entry)
            for entry in archive.infolist()
            if entry.filename.endswith(".npy")
        }

    def _array(self, entry: zipfile.ZipInfo) -> Tensor:
        """The array that a header describes, on the meta device."""
        shape, dtype = array_header(self._zip, entry)
        if dtype.hasobject:
            raise NeedsCode("holds objects that only running code from the file could restore")
        return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device="meta")

    def load(self) -> dict[str, Tensor]:
        """Load the tensors by name."""
        self._file.seek(0)
        with np.load(self._file, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key], order="C")) for key in self.described}

    def check(self) -> None:
        """Verify all checksums."""
        if damaged := self._zip.testzip():
            raise ValueError(f"the checksum of {damaged!r} is wrong")


def array_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in an npz archive.

    Raises:
        ValueError, KeyError: not an array, or its size is not that of the entry.
    """
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(entry) as file:
        shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
        if not dtype.hasobject and file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise ValueError(f"its shape {shape} of {dtype} does not fit its {entry.file_size} bytes")
    return shape, dtype
