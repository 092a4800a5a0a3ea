"""Files of tensors are read as torch reads them, or refused."""

import datetime
import importlib
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtable import models
from kdtable.files import array_files, torch_files, zips
from kdtable.files.tensor_file import BadTensorFile, Inert, NeedsCode, TensorFile, safetensors_bytes
from tests.tensor_files import Claim, described, forged, forged_stream, mutations, saved

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


def read(content: bytes) -> Any:
    file = TensorFile(io.BytesIO(content))
    file.check()
    return file.load()


def same(one: Any, other: Any) -> bool:
    """Equal values of equal kinds; tensors to the bit and to the stride."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
            and torch.equal(_bits(one), _bits(other))
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def _bits(tensor: Tensor) -> Tensor:
    return tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


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


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


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


def test_safetensors_are_those_of_the_library_and_always_the_same() -> None:
    tensors = {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(2).bfloat16(), "none": torch.empty(0, 3)}
    metadata = {str(number): "x" for number in range(20)}
    content = safetensors_bytes(tensors, metadata)
    assert content == safetensors_bytes(tensors, dict(reversed(metadata.items())))
    loaded = safetensors.torch.load(content)
    assert same({key: loaded[key] for key in tensors}, tensors)
    assert TensorFile(io.BytesIO(safetensors.torch.save(tensors, metadata))).metadata == metadata


# --- damage ----------------------------------------------------------------------------------------------------------

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


# --- forgery ---------------------------------------------------------------------------------------------------------


def test_a_forged_file_is_like_a_real_one_but_for_the_forgery() -> None:
    file = forged({"w": Claim((2, 3), (3, 1))})
    assert torch.equal(read(file)["w"], torch.zeros(2, 3))
    assert torch.equal(torch.load(io.BytesIO(file), weights_only=True)["w"], torch.zeros(2, 3))


HUGE = 2**40
CLAIMS = {
    "more numbers than there are": Claim((6,), (1,), numel=HUGE),
    "fewer numbers than there are": Claim((2,), (1,), numel=5),
    "a shape beyond its storage": Claim((HUGE,), (1,)),
    "shapes whose product is huge": Claim((2**20, 2**20, 2**20), (1, 1, 1)),
    "a stride beyond its storage": Claim((2, 3), (HUGE, 1)),
    "an offset beyond its storage": Claim((6,), (1,), offset=1),
    "a negative offset": Claim((2,), (1,), offset=-1),
    "a negative shape": Claim((-1,), (1,)),
    "a negative stride": Claim((2,), (-1,)),
    "shape and stride of different lengths": Claim((2, 3), (1,)),
    "a shape of fractions": Claim((2.0,), (1,)),  # type: ignore[arg-type]
    "numbers beyond all measure": Claim((2**70,), (0,), numel=2**70),
    "another storage": Claim((6,), (1,), key="1"),
    "a place outside": Claim((6,), (1,), key="../data.pkl"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_tensor_that_claims_what_is_not_there_is_refused_before_it_takes_memory(case: str) -> None:
    file = forged({"w": CLAIMS[case]})
    with pytest.raises(BadTensorFile):
        read_in_little(file)


def read_in_little(content: bytes) -> Any:
    """What is read, which must take little memory, however it ends."""
    tracemalloc.start()
    before = resident()
    try:
        return read(content)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 * 2**20
        assert resident() - before < 400 * 2**20


def resident() -> int:
    """Bytes of memory that the process has had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("zipped", [True, False])
def test_a_shape_spread_over_one_number_takes_no_memory(zipped: bool) -> None:
    """Whoever uses it compares it with the shape that is expected."""
    claim = {"w": Claim((HUGE,), (0,))}
    file = forged(claim) if zipped else forged_stream(claim, struct.pack("<q", 6), bytes(24))
    assert read_in_little(file)["w"].shape == (HUGE,)


def test_storages_described_in_two_ways_are_refused() -> None:
    two = [Claim((6,), (1,)), Claim((6,), (1,), kind=torch.IntStorage)]
    for file in (forged(two), forged_stream(two, struct.pack("<q", 6), bytes(24))):
        with pytest.raises(BadTensorFile, match="two ways"):
            read(file)


def test_a_compressed_archive_is_refused() -> None:
    """A thousandth of the bytes would do for it."""
    claim = {"w": Claim((6_000_000,), (1,), numel=6_000_000)}
    file = forged(claim, storages={"0": bytes(24_000_000)}, compressed=True)
    assert len(file) < 50_000
    with pytest.raises(BadTensorFile, match="compressed"):
        read_in_little(file)


def test_arrays_that_unfold_to_more_than_the_limit_are_refused() -> None:
    file = npz(w=np.zeros(6_000_000, np.float32))
    assert TensorFile(io.BytesIO(file), 25_000_000).described["w"].shape == (6_000_000,)
    with pytest.raises(BadTensorFile, match=r"claim 24000\d+ bytes, more than 24000000"):
        TensorFile(io.BytesIO(file), 24_000_000)


def test_entries_that_torch_may_take_for_each_other_are_refused() -> None:
    """It finds entries in any case, and in the folder of the first one."""
    for name in ("archive/BYTEORDER", "other/byteorder"):
        buffer = io.BytesIO(forged({"w": Claim((6,), (1,))}))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(name, b"big")
        with pytest.raises(BadTensorFile, match="in two ways"):
            read(buffer.getvalue())


def test_entries_on_top_of_each_other_are_refused() -> None:
    """Many entries of one stretch of bytes would unfold to many times its size."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", described({"w": Claim((6,), (1,))}))
        archive.writestr("archive/data/0", bytes(100_000))
        (entry,) = (e for e in archive.infolist() if e.filename.endswith("/0"))
        for number in range(1, 50):
            copy = zipfile.ZipInfo(f"archive/data/{number}")
            copy.header_offset, copy.CRC = entry.header_offset, entry.CRC
            copy.compress_size = copy.file_size = entry.file_size
            archive.filelist.append(copy)
    with pytest.raises(BadTensorFile):
        read_in_little(buffer.getvalue())


def test_two_entries_of_one_name_are_refused() -> None:
    buffer = io.BytesIO(forged({"w": Claim((6,), (1,))}))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"\x01" * 24)
    with pytest.raises(BadTensorFile, match="one name"):
        read(buffer.getvalue())


def test_a_directory_of_millions_of_entries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MAX_DIRECTORY", 1000)
    file = forged({}, storages={str(number): b"" for number in range(100)})
    with pytest.raises(BadTensorFile, match="its directory claims"):
        read(file)


def test_a_long_description_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "MAX_DESCRIPTION", 1000)
    monkeypatch.setattr(array_files, "MAX_DESCRIPTION", 1000)
    assert read(forged({"a": "x" * 900}))
    with pytest.raises(BadTensorFile, match="description is too long"):
        read(forged({"a": "x" * 1000}))
    with pytest.raises(BadTensorFile, match="header is too long"):
        read(safetensors_bytes({"w": torch.ones(2)}, {"a": "x" * 1000}))


def test_numbers_of_another_byte_order_are_refused() -> None:
    with pytest.raises(BadTensorFile, match="byte order"):
        read(forged({"w": Claim((6,), (1,))}, byteorder=b"big"))


def long(number: int) -> bytes:
    content = number.to_bytes(16, "little")
    return b"\x8a" + bytes([len(content)]) + content


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


#: Lists of which each holds the one before twice: printed or compared, the last one would never end.
LAUGHS = b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60))
#: Lists that lie in the memo: of numbers, and of pairs with different keys.
NUMBERS = b"\x80\x02](" + b"K\x01" * 3000 + b"eq\0"
PAIRS = b"\x80\x02](" + b"".join(b"M" + struct.pack("<H", key) + b"N\x86" for key in range(1000)) + b"eq\0"
TENSOR = described(Claim((6,), (1,)))[2:-1]
PICKLES = {
    "a memo of two thousand million places": (b"\x80\x02}r\xff\xff\xff\x7f.", True),
    "a text of four thousand million bytes": (b"\x80\x02X\xff\xff\xff\xffabc.", False),
    "a byte array that takes all memory": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", False),
    "bytes that take all memory": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", False),
    "a number of two thousand million digits": (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", False),
    "a nest of a hundred thousand lists": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", True),
    "a nest of a hundred thousand tuples as a key": (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.", False),
    "lists that double sixty times": (b"\x80\x02(]q\0" + LAUGHS + b"t.", True),
    "shapes that are copies of one list": (
        NUMBERS + b"ctorch\nSize\nq\1(" + b"h\1h\0\x85R" * 4000 + b"t.",
        False,
    ),
    "dicts that are copies of one list": (
        PAIRS + b"ccollections\nOrderedDict\nq\1(" + b"h\1h\0\x85R" * 2000 + b"t.",
        False,
    ),
    "tensors that are copies of one": (b"\x80\x02(" + TENSOR + b"h\0h\x0aR" * 30_000 + b"t.", False),
    "keys that were made to have one hash": (
        b"\x80\x02}(" + b"".join(long(n * (2**61 - 1)) + b"N" for n in range(2**4, 2**4 + 200)) + b"u.",
        False,
    ),
    "a buffer of a terabyte": (b"\x80\x02c__builtin__\nbytearray\n" + long(2**40) + b"\x85R.", False),
    "a tensor of a terabyte": (b"\x80\x02ctorch\nFloatTensor\n" + long(2**38) + b"\x85R.", False),
    "a tensor of another kind of a terabyte": (b"\x80\x02ctorch\nTensor\n" + long(2**38) + b"\x85R.", False),
    "bytes that double forty times": (
        b"\x80\x02c_codecs\nencode\nq\0"
        + text("hex")
        + b"q\1"
        + b"h\0" * 40
        + b"h\0"
        + text("x" * 100)
        + text("latin1")
        + b"\x86R"
        + b"h\1\x86R" * 40
        + b".",
        False,
    ),
    "bytes that are copies of one text": (
        b"\x80\x02c_codecs\nencode\nq\0"
        + text("x" * 100_000)
        + b"q\1"
        + text("latin1")
        + b"q\2("
        + b"h\0h\1h\2\x86R" * 1000
        + b"t.",
        False,
    ),
    "sets that are copies of one list": (NUMBERS + b"c__builtin__\nset\nq\1(" + b"h\1h\0\x85R" * 4000 + b"t.", False),
    "attributes that are copies of one dict": (
        b"\x80\x02}("
        + b"".join(text(str(key)) + b"N" for key in range(1000))
        + b"uq\0ccollections\nOrderedDict\nq\1("
        + b"h\1)Rh\0b" * 2000
        + b"t.",
        False,
    ),
    "no end": (b"\x80\x02}", False),
    "more than one value": (b"\x80\x02}}.", False),
    "an empty stack": (b"\x80\x02.", False),
    "a mark that is not there": (b"\x80\x02}u.", False),
    "a text that is no UTF-8": (b"\x80\x02X\x01\x00\x00\x00\xff.", False),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_description_that_would_take_all_memory_or_time_takes_little(case: str) -> None:
    description, good = PICKLES[case]
    file = forged(description=description)
    if good:
        read_in_little(file)
    else:
        with pytest.raises(BadTensorFile):
            read_in_little(file)


def test_a_dict_is_made_of_pairs_as_old_pythons_wrote_it() -> None:
    pairs = PAIRS[:-2] + b"\x85R."
    file = forged(description=b"\x80\x02ccollections\nOrderedDict\n" + pairs[2:])
    assert read(file) == dict.fromkeys(range(1000))
    assert torch.load(io.BytesIO(file), weights_only=True) == dict.fromkeys(range(1000))


@pytest.mark.parametrize("name", ["9" * 5000, "\x1b[31m"])
def test_a_refusal_is_short_and_plain_whatever_is_named(name: str) -> None:
    claims = [Claim((6,), (1,), key=name), Claim((1,), (1,), key=name, numel=1)]
    with pytest.raises(BadTensorFile) as caught:
        read(forged(claims, storages={name: bytes(24)}))
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


class Anything:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


STRANGERS = {
    "a function": Anything(print, "hello"),
    "an array": np.arange(3),
    "a number of numpy": np.float64(3),
    "a path": Path("somewhere"),
    "a frozen set": frozenset({1, 2}),
    "a queue": deque([1, 2]),
    "a module": torch.nn.Linear(2, 2),
    "a date": datetime.date(2020, 1, 1),
}
#: What torch would make of a short text in the file.
MADE = {
    "a buffer": Anything(bytearray, 2**40),
    "a tensor made by its class": Anything(torch.FloatTensor, 2**40),
    "a sparse tensor": torch.zeros(3).to_sparse(),
    "a tensor without numbers": torch.zeros(3, device="meta"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_objects_beside_tensors_do_nothing(case: str) -> None:
    allowed = torch.serialization.get_safe_globals()
    content = read(saved({"w": torch.arange(6.0), "a": STRANGERS[case]}))
    assert torch.equal(content["w"], torch.arange(6.0))
    assert isinstance(content["a"], Inert)
    assert set(torch.serialization.get_safe_globals()) == set(allowed)
    with pytest.raises(NeedsCode, match=repr(content["a"]).rpartition(".")[0]):
        read(saved({"w": torch.arange(6.0), "a": STRANGERS[case]}, zipped=False))


def test_an_object_with_items_is_passed_over_as_a_dict() -> None:
    content = read(saved({"w": torch.arange(6.0), "a": defaultdict(list, {"b": [1]})}))
    assert (content["w"].shape, content["a"]) == ((6,), {"b": [1]})


@pytest.mark.parametrize("case", MADE)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_would_make_of_any_size_is_refused(case: str, zipped: bool) -> None:
    with pytest.raises(NeedsCode, match=r"neither a dense tensor nor a plain value|objects beside its tensors"):
        read_in_little(saved({"a": MADE[case]}, zipped=zipped))


@pytest.mark.parametrize(
    "call", [eval, exec, getattr, os.system, subprocess.run, shutil.rmtree, importlib.import_module]
)
def test_what_needs_code_is_told_from_what_is_damaged(call: Any, tmp_path: Path) -> None:
    for zipped in (True, False):
        with pytest.raises(NeedsCode, match=r"only running code from the file could restore"):
            read(saved({"a": Anything(call, str(tmp_path / "marker"))}, zipped=zipped))


def touch(path: str) -> None:
    Path(path).touch()


def test_nothing_that_a_file_names_is_called(tmp_path: Path) -> None:
    read(saved({"a": Anything(touch, str(tmp_path / "marker"))}))
    assert not (tmp_path / "marker").exists()
    hidden = b"\x80\x02(X\x02\x00\x00\x00lsiposix\nsystem\n."
    with pytest.raises(BadTensorFile, match="opcode INST"):
        read(forged(description=hidden))


def test_a_call_of_what_is_no_call_is_refused() -> None:
    for description in (b"\x80\x02K\x01)R.", b"\x80\x02ctorch\nFloatStorage\n)R.", b"\x80\x02K\x01}b."):
        with pytest.raises(BadTensorFile):
            read(forged(description=description))


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


# --- arrays ----------------------------------------------------------------------------------------------------------


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


# --- the format from before torch 1.6 --------------------------------------------------------------------------------


def test_a_stream_must_hold_exactly_what_it_claims() -> None:
    whole = saved({"w": torch.arange(6.0)}, zipped=False)
    place = whole.index(struct.pack("<q", 6), len(whole) - 40)
    for content in (
        whole + b"\0",
        whole[:-1],
        whole[:place] + struct.pack("<q", 7) + whole[place + 8 :],
        whole[:place] + struct.pack("<q", -1) + whole[place + 8 :],
    ):
        with pytest.raises(BadTensorFile):
            read(content)


def test_a_forged_stream_is_like_a_real_one_but_for_the_forgery() -> None:
    file = forged_stream({"w": Claim((2, 3), (3, 1))}, struct.pack("<q", 6), bytes(24))
    assert torch.equal(read(file)["w"], torch.zeros(2, 3))
    assert torch.equal(torch.load(io.BytesIO(file), weights_only=True)["w"], torch.zeros(2, 3))


@pytest.mark.parametrize("case", CLAIMS)
def test_a_stream_that_claims_what_is_not_there_is_refused_before_it_takes_memory(case: str) -> None:
    claim = CLAIMS[case]
    for numel in (6, min(claim.numel, 2**62)):
        with pytest.raises(BadTensorFile):
            read_in_little(forged_stream({"w": claim}, struct.pack("<q", numel), bytes(24)))


@pytest.mark.parametrize("keys", [(), ["0", "1"], ["1"], ["0", "0"], "0", 5, {"0": 1, "1": 2}, [0], [[["0"]]]])
def test_a_stream_whose_list_of_storages_is_wrong_is_refused(keys: object) -> None:
    file = forged_stream({"w": Claim((6,), (1,))}, struct.pack("<q", 6), bytes(24), keys=keys)
    with pytest.raises(BadTensorFile):
        read(file)
