"""Files of tensors that were made by torch, damaged, or forged."""

import io
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch


def saved(content: object, *, zipped: bool = True) -> bytes:
    """What ``torch.save`` writes, in today's format or in that from before torch 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@dataclass(frozen=True)
class Claim:
    """A float32 tensor that is described at will, in a storage that claims so many elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    numel: int = 6
    key: str = "0"
    kind: Any = torch.FloatStorage

    def __reduce__(self) -> tuple[Any, ...]:
        storage = Place(self.key, self.numel, self.kind)
        return torch._utils._rebuild_tensor_v2, (storage, self.offset, self.shape, self.stride, False, OrderedDict())


@dataclass(frozen=True)
class Place:
    """A storage in the description of a forged file."""

    key: str
    numel: int
    kind: Any


class _Pickler(pickle.Pickler):
    #: What follows in the name of a storage.
    rest: tuple[object, ...] = ()

    def persistent_id(self, value: object) -> tuple[Any, ...] | None:
        return ("storage", value.kind, value.key, "cpu", value.numel, *self.rest) if isinstance(value, Place) else None


class _LegacyPickler(_Pickler):
    rest = (None,)


def described(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    (_LegacyPickler if legacy else _Pickler)(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def forged_stream(content: object, *parts: bytes, keys: object = ["0"]) -> bytes:
    """The format from before torch 1.6, with whatever content and, in ``parts``, whatever storages."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    return b"".join([*head, described(content, legacy=True), pickle.dumps(keys, protocol=2), *parts])


def forged(
    content: object = None,
    *,
    description: bytes | None = None,
    storages: dict[str, bytes] | None = None,
    compressed: bool = False,
    byteorder: bytes = b"little",
) -> bytes:
    """An archive as torch writes it, with whatever description and storages."""
    entries = {
        "data.pkl": described(content) if description is None else description,
        "byteorder": byteorder,
        **{f"data/{key}": value for key, value in ({"0": bytes(24)} if storages is None else storages).items()},
        "version": b"3\n",
    }
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, value in entries.items():
            archive.writestr(f"archive/{name}", value)
    return buffer.getvalue()


#: How many damaged copies of a file are tried: a sample, and all with ``--all``.
MUTATIONS = pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Up to ``count`` damaged copies, half of them by one flipped bit, with what was done to each."""
    draw = random.Random(seed)
    kinds = [_flip, _byte, _cut, _zero, _repeat, _drop, _swap, _grow]
    for number in range(count):
        kind = kinds[number % len(kinds)] if number % 2 else _flip
        changed = kind(bytearray(content), draw)
        if changed != content:
            yield f"{kind.__name__} {number}", bytes(changed)


def _flip(content: bytearray, draw: random.Random) -> bytearray:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def _byte(content: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.randrange(1, 4)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return content


def _cut(content: bytearray, draw: random.Random) -> bytearray:
    return content[: draw.randrange(len(content))]


def _stretch(content: bytearray, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(content))
    return start, min(len(content), start + 2 ** draw.randrange(10))


def _zero(content: bytearray, draw: random.Random) -> bytearray:
    start, end = _stretch(content, draw)
    content[start:end] = bytes(end - start)
    return content


def _repeat(content: bytearray, draw: random.Random) -> bytearray:
    start, end = _stretch(content, draw)
    return content[:end] + content[start:end] + content[end:]


def _drop(content: bytearray, draw: random.Random) -> bytearray:
    start, end = _stretch(content, draw)
    return content[:start] + content[end:]


def _swap(content: bytearray, draw: random.Random) -> bytearray:
    """Two sectors of 512 bytes trade places."""
    places = range(max(1, len(content) // 512))
    one, other = (512 * draw.choice(places) for _ in range(2))
    content[one : one + 512], content[other : other + 512] = content[other : other + 512], content[one : one + 512]
    return content


def _grow(content: bytearray, draw: random.Random) -> bytearray:
    return content + draw.randbytes(draw.randrange(1, 600))
