"""Safetensors and npz that claim what they do not hold."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from kdtable.files.tensor_file import BadTensorFile, NeedsCode, TensorFile, safetensors_bytes
from tests.files.reading import HUGE, Anything, npz, read, read_in_little, same


def test_safetensors_are_those_of_the_library_and_always_the_same() -> None:
    tensors = {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(2).bfloat16(), "none": torch.empty(0, 3)}
    metadata = {str(number): "x" for number in range(20)}
    content = safetensors_bytes(tensors, metadata)
    assert content == safetensors_bytes(tensors, dict(reversed(metadata.items())))
    loaded = safetensors.torch.load(content)
    assert same({key: loaded[key] for key in tensors}, tensors)
    assert TensorFile(io.BytesIO(safetensors.torch.save(tensors, metadata))).metadata == metadata


def test_arrays_that_unfold_to_more_than_the_limit_are_refused() -> None:
    file = npz(w=np.zeros(6_000_000, np.float32))
    assert TensorFile(io.BytesIO(file), 25_000_000).described["w"].shape == (6_000_000,)
    with pytest.raises(BadTensorFile, match=r"claim 24000\d+ bytes, more than 24000000"):
        TensorFile(io.BytesIO(file), 24_000_000)


def header(**entries: object) -> bytes:
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head)) + head + bytes(24)


def f32(shape: list[Any], *, end: int = 24, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


def test_a_forged_header_is_like_a_real_one_but_for_the_forgery() -> None:
    assert torch.equal(read(header(w=f32([2, 3])))["w"], torch.zeros(2, 3))


HEADERS = {
    "a terabyte": header(w=f32([HUGE])),
    "a terabyte that is said to be there": header(w=f32([HUGE], end=4 * HUGE)),
    "another end": header(w=f32([2, 3], end=20)),
    "a negative shape": header(w=f32([-2, -3])),
    "a shape of fractions": header(w=f32([2.0, 3.0])),
    "a shape of truths": header(w=f32([True, 6])),
    "an unknown type": header(w=f32([2, 3], dtype="F99")),
    "no shape": header(w={"dtype": "F32", "data_offsets": [0, 24]}),
    "two tensors in one place": header(w=f32([3], end=12), v=f32([3], end=12)),
    "metadata that are no texts": header(__metadata__={"a": 1}, w=f32([2, 3])),
    "a list": struct.pack("<Q", 2) + b"{]" + bytes(24),
    "a nest": struct.pack("<Q", 90_005) + b'{"w":' + b"[" * 90_000 + bytes(24),
    "no dict": struct.pack("<Q", 4) + b"{}1 " + bytes(24),
}


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_that_claim_what_is_not_there_are_refused(case: str) -> None:
    with pytest.raises(BadTensorFile):
        read_in_little(HEADERS[case])


def entry(head: str, content: bytes) -> bytes:
    """An npz with one array, whose header says anything."""
    text = head.encode() + b" " * (-(len(head) + 11) % 64) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content)
    return buffer.getvalue()


HEADS = {
    "a terabyte": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE},)}}",
    "a negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-6,)}",
    "less than is there": "{'descr': '<f4', 'fortran_order': False, 'shape': (5,)}",
    "another type": "{'descr': '<U6', 'fortran_order': False, 'shape': (1,)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
    "code": "{'descr': __import__('os').mkdir('sprung'), 'fortran_order': False, 'shape': (6,)}",
    "nothing": "",
}


@pytest.mark.parametrize("case", HEADS)
def test_arrays_that_claim_what_is_not_there_are_refused(case: str) -> None:
    assert torch.equal(read(entry("{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", bytes(24)))["w"], ZEROS)
    with pytest.raises(BadTensorFile):
        read_in_little(entry(HEADS[case], bytes(24)))


ZEROS = torch.zeros(6)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    with pytest.raises(NeedsCode, match="only running code"):
        read(npz(w=np.array([Anything(Path.touch, tmp_path / "marker")])))
    assert not (tmp_path / "marker").exists()
