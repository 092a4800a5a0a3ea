"""Files of tensors of all formats are read as torch reads them, or refused."""

import io
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtable import models
from kdtable.files import array_files, torch_files
from kdtable.files.tensor_file import BadTensorFile, TensorFile, safetensors_bytes
from tests.files.reading import npz, read, read_in_little, same
from tests.tensor_files import forged, mutations, saved

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()
KEYS = st.text(max_size=5) | st.integers(-(2**63), 2**63 - 1)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    whole = torch.randint(0, 100, [*shape], generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    tensor = whole.to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()) and tensor.dim():
        tensor = tensor.transpose(0, -1)
    if draw(st.booleans()) and tensor.dim() and tensor.shape[0]:
        tensor = tensor[draw(st.integers(0, tensor.shape[0] - 1)) :]
    return tensor


CONTENTS = st.recursive(
    PLAIN | tensors(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(CONTENTS, st.booleans())
def test_what_torch_saves_is_read_as_torch_reads_it(content: Any, zipped: bool) -> None:
    file = saved(content, zipped=zipped)
    assert same(read(file), torch.load(io.BytesIO(file), weights_only=True))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_network_and_its_optimiser(zipped: bool) -> None:
    network = models.build("resnet8", 10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, foreach=True)
    network(torch.randn(2, 3, 32, 32)).logits.sum().backward()
    optimizer.step()
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    file = saved(content, zipped=zipped)
    assert same(read(file), torch.load(io.BytesIO(file), weights_only=True))


def test_a_parameter_is_read_as_a_tensor() -> None:
    content = {"w": torch.nn.Parameter(torch.arange(3.0))}
    assert read(saved(content))["w"].tolist() == [0, 1, 2]


def test_tensors_that_share_their_numbers_do_so_again() -> None:
    whole = torch.arange(6.0)
    one, other = read(saved([whole, whole[2:]]))
    one[3] = 9
    assert other.tolist() == [2, 9, 4, 5]


FORMATS = {
    "zip": saved({"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}),
    "old": saved({"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, zipped=False),
    "safetensors": safetensors_bytes({"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, {"a": "é"}),
}


FORMATS["npz"] = npz(w=np.arange(6, dtype=np.float32).reshape(2, 3), n=np.int64(3))


@pytest.mark.parametrize("kind", FORMATS)
def test_names_and_shapes_are_known_before_a_tensor_is_read(kind: str) -> None:
    file = TensorFile(io.BytesIO(FORMATS[kind]))
    assert {key: (value.shape, value.dtype) for key, value in file.described.items()} == {
        "w": ((2, 3), torch.float32),
        "n": ((), torch.int64),
    }
    assert all(value.is_meta for value in file.described.values())
    file.check()
    assert same(dict(sorted(file.load().items())), {"n": torch.tensor(3), "w": torch.arange(6.0).view(2, 3)})
    assert file.metadata == ({"a": "é"} if kind == "safetensors" else {})


STATE = {"epoch": 7, "model": OrderedDict(w=torch.arange(40.0).view(5, 8), n=torch.tensor(3)), "name": "résumé"}


def test_every_single_flipped_bit_is_found_or_does_no_harm() -> None:
    """All bytes of an archive: its tensors, its description, its headers, and what lies between."""
    whole = saved(STATE)
    found = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        try:
            assert same(read(bytes(content)), read(whole)), place
        except BadTensorFile:
            found += 1
    assert found > 160  # bytes of tensors alone


def fuzzed(whole: bytes, count: int, seed: int = 0) -> int:
    """How many of so many damaged copies are refused; the others are read, with little memory.

    The old format and safetensors have no checksums: what is left of them may be anything.
    """
    refused = 0
    for name, content in mutations(whole, count, seed):
        try:
            state = read_in_little(content)
        except BadTensorFile as error:
            refused += 1
            sentence = str(error)
            if len(sentence) > 400 or not sentence.isprintable():
                pytest.fail(f"{name}: {sentence}")
        else:
            assert same(state, read(whole)) or whole[:2] != b"PK", name
    return refused


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_read_unchanged_or_refused(kind: str) -> None:
    assert fuzzed(FORMATS[kind], 60) > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_damaged_files_are_read_unchanged_or_refused(kind: str, seed: int) -> None:
    assert fuzzed(FORMATS[kind], 400, seed) > 80


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_is_refused(kind: str) -> None:
    whole = FORMATS[kind]
    for length in range(0, len(whole), 7):
        with pytest.raises(BadTensorFile):
            read(whole[:length])


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", saved(STATE, zipped=False)[:200]]))
def test_any_bytes_are_refused(content: bytes, head: bytes) -> None:
    with pytest.raises(BadTensorFile):
        read(head + content)


def test_a_long_description_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "MAX_DESCRIPTION", 1000)
    monkeypatch.setattr(array_files, "MAX_DESCRIPTION", 1000)
    assert read(forged({"a": "x" * 900}))
    with pytest.raises(BadTensorFile, match="description is too long"):
        read(forged({"a": "x" * 1000}))
    with pytest.raises(BadTensorFile, match="header is too long"):
        read(safetensors_bytes({"w": torch.ones(2)}, {"a": "x" * 1000}))


def test_memory_that_runs_out_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = TensorFile(io.BytesIO(FORMATS["zip"]))
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        monkeypatch.setattr(torch, "load", raising(error))
        with pytest.raises(MemoryError):
            file.load()
    monkeypatch.setattr(torch, "load", raising(RuntimeError("PytorchStreamReader failed")))
    with pytest.raises(BadTensorFile, match="is damaged"):
        file.load()


def raising(error: Exception) -> Any:
    def load(*_: object, **__: object) -> None:
        raise error

    return load
