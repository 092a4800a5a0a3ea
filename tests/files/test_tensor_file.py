"""Files of tensors are read as torch reads them, or refused."""

import io
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtable import models
from kdtable.files import tensor_file, zips
from kdtable.files.tensor_file import BadTensorFile, NeedsCode, TensorFile
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


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
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


def test_nothing_is_read_of_a_tensor_before_it_is_asked_for() -> None:
    content = bytearray(saved({"a": torch.arange(6.0), "b": torch.arange(7.0)}))
    place = content.index(torch.arange(6.0).numpy().tobytes())
    content[place] ^= 1
    file = TensorFile(io.BytesIO(bytes(content)))
    assert file.described["a"].shape == (6,)
    assert file.tensor(file.described["b"]).tolist() == list(range(7))
    with pytest.raises(BadTensorFile, match="damaged"):
        file.tensor(file.described["a"])
    with pytest.raises(BadTensorFile, match="damaged"):
        file.check()


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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_read_unchanged_or_refused(zipped: bool) -> None:
    whole = saved(STATE, zipped=zipped)
    numbers = STATE["model"]["w"].numpy().tobytes(), b"\x03" + bytes(7)  # type: ignore[index]
    refused = 0
    for name, content in mutations(whole, 1200):
        try:
            state = read(content)
        except BadTensorFile:
            refused += 1
        else:
            # The old format has no checksums: what is left of its description, and its numbers, may be anything.
            assert same(state, read(whole)) or not zipped, name
    assert refused > 500
    assert all(part in whole for part in numbers)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncation_is_refused(zipped: bool) -> None:
    whole = saved(STATE, zipped=zipped)
    for length in range(len(whole)):
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
    "a shape spread over one number": Claim((HUGE,), (0,)),
    "shapes whose product is huge": Claim((2**20, 2**20, 2**20), (0, 0, 0)),
    "a stride beyond its storage": Claim((2, 3), (HUGE, 1)),
    "an offset beyond its storage": Claim((6,), (1,), offset=1),
    "a negative offset": Claim((2,), (1,), offset=-1),
    "a negative shape": Claim((-1,), (1,)),
    "a negative stride": Claim((2,), (-1,)),
    "shape and stride of different lengths": Claim((2, 3), (1,)),
    "a shape of fractions": Claim((2.0,), (1,)),  # type: ignore[arg-type]
    "a shape of truths": Claim((True,), (1,)),
    "numbers beyond all measure": Claim((2**70,), (0,), numel=2**70),
    "another storage": Claim((6,), (1,), key="1"),
    "a place outside": Claim((6,), (1,), key="../data.pkl"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_tensor_that_claims_what_is_not_there_is_refused_before_it_takes_memory(case: str) -> None:
    file = forged({"w": CLAIMS[case]})
    with pytest.raises(BadTensorFile):
        memory_of(file)


def memory_of(content: bytes) -> int:
    """Peak of what reading takes, in bytes, however it ends; it must be little."""
    tracemalloc.start()
    try:
        read(content)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 * 2**20
    return peak


def test_storages_described_in_two_ways_are_refused() -> None:
    two = [Claim((6,), (1,)), Claim((6,), (1,), kind=torch.IntStorage)]
    for file in (forged(two), forged_stream(two, struct.pack("<q", 6), bytes(24))):
        with pytest.raises(BadTensorFile, match="two ways"):
            read(file)


def test_a_compressed_archive_is_refused() -> None:
    """A thousandth of the bytes would do for it."""
    file = forged({"w": Claim((6_000_000,), (1,), numel=6_000_000)}, storages={"0": bytes(24_000_000)}, compressed=True)
    assert len(file) < 50_000
    with pytest.raises(BadTensorFile, match="compressed"):
        memory_of(file)


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
    with pytest.raises(BadTensorFile, match="claim more bytes than there are"):
        read(buffer.getvalue())


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
    monkeypatch.setattr(tensor_file, "MAX_DESCRIPTION", 1000)
    assert read(forged({"a": "x" * 900}))
    with pytest.raises(BadTensorFile, match="description is too long"):
        read(forged({"a": "x" * 1000}))


def test_numbers_of_another_byte_order_are_refused() -> None:
    with pytest.raises(BadTensorFile, match="byte order"):
        read(forged({"w": Claim((6,), (1,))}, byteorder=b"big"))


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
    "tensors that are copies of one": (b"\x80\x02(" + TENSOR + b"h\0h\x0aR" * 10_000 + b"t.", False),
    "a call with a thousand arguments": (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(" + TENSOR + b"N" * 1000 + b"tR.",
        False,
    ),
    "a key that could be made to have any hash": (b"\x80\x02}\x8a\x09" + bytes(8) + b"\x01Ns.", False),
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
        memory_of(file)
    else:
        with pytest.raises(BadTensorFile):
            memory_of(file)


def test_a_dict_is_made_of_pairs_as_old_pythons_wrote_it() -> None:
    pairs = PAIRS[:-2] + b"\x85R."
    file = forged(description=b"\x80\x02ccollections\nOrderedDict\n" + pairs[2:])
    assert read(file) == dict.fromkeys(range(1000))
    assert torch.load(io.BytesIO(file), weights_only=True) == dict.fromkeys(range(1000))


def test_a_shape_of_more_dimensions_than_torch_has_is_refused_before_its_product_is_made() -> None:
    assert TensorFile(io.BytesIO(forged(Claim((1,) * 64, (1,) * 64)))).described.shape == (1,) * 64
    for many in ((1,) * 65, (2**63, 0)):
        with pytest.raises(BadTensorFile):
            TensorFile(io.BytesIO(forged(Claim(many, (0,) * len(many)))))


def test_memory_that_runs_out_while_a_description_is_read_is_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    file = forged(Claim((6,), (1,)))
    monkeypatch.setattr(tensor_file, "unpickle", exhausted)
    with pytest.raises(BadTensorFile, match="MemoryError"):
        read(file)


@pytest.mark.parametrize("name", ["9" * 5000, "\x1b[31m"])
def test_a_refusal_is_short_and_plain_whatever_is_named(name: str) -> None:
    claims = [Claim((6,), (1,), key=name), Claim((1,), (1,), key=name, numel=1)]
    with pytest.raises(BadTensorFile) as caught:
        read(forged(claims, storages={name: bytes(24)}))
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


class Anything:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


STRANGERS = {
    "a function": Anything(print, "hello"),
    "a tensor made by its class": Anything(torch.FloatTensor, 2**40),
    "an array": np.arange(3),
    "a number of numpy": np.float64(3),
    "bytes": Anything(bytearray, 2**40),
    "a path": Path("somewhere"),
    "a set": {1, 2},
    "a complex number": 1j,
    "a sparse tensor": torch.zeros(3).to_sparse(),
    "a tensor without numbers": torch.zeros(3, device="meta"),
    "a dtype": torch.float32,
    "a device": torch.device("cpu"),
    "a module": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("case", STRANGERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_but_plain_values_and_dense_tensors_is_read(case: str, zipped: bool) -> None:
    with pytest.raises(BadTensorFile):
        read(saved({"a": STRANGERS[case]}, zipped=zipped))


def test_what_needs_code_is_told_from_what_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(NeedsCode, match="only running code"):
        read(saved({"a": Anything(Path.touch, tmp_path / "marker")}))
    assert not (tmp_path / "marker").exists()
    for description in (
        b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        b"\x80\x02(X\x02\x00\x00\x00lsiposix\nsystem\n.",
    ):
        with pytest.raises(NeedsCode):
            read(forged(description=description))


def test_a_call_of_what_is_no_call_is_refused() -> None:
    for description in (b"\x80\x02K\x01)R.", b"\x80\x02ctorch\nFloatStorage\n)R.", b"\x80\x02K\x01}b."):
        with pytest.raises(NeedsCode):
            read(forged(description=description))


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
            memory_of(forged_stream({"w": claim}, struct.pack("<q", numel), bytes(24)))


@pytest.mark.parametrize("keys", [(), ("0", "1"), ("1",), ("0", "0"), "0", 5, {"0": 1, "1": 2}, (0,)])
def test_a_stream_whose_list_of_storages_is_wrong_is_refused(keys: object) -> None:
    file = forged_stream({"w": Claim((6,), (1,))}, struct.pack("<q", 6), bytes(24), keys=keys)
    if keys == "0":  # the text is a sequence of one key
        assert torch.equal(read(file)["w"], torch.zeros(6))
        return
    with pytest.raises(BadTensorFile):
        read(file)


def test_a_list_of_storages_that_are_no_names_is_not_sorted() -> None:
    """Two nests of lists that hold each other many times would be compared without end."""
    file = forged_stream({"w": Claim((6,), (1,))}, struct.pack("<q", 6), bytes(24), keys=([[0]], [[0]]))
    with pytest.raises(BadTensorFile, match="its list of storages is none"):
        read(file)
