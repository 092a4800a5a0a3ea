"""Descriptions in files of torch that would take all memory, or name what is no tensor."""

import datetime
import importlib
import io
import os
import shutil
import struct
import subprocess
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdtable.files.tensor_file import BadTensorFile, Inert, NeedsCode
from tests.files.reading import Anything, read, read_in_little
from tests.tensor_files import Claim, described, forged, saved


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
