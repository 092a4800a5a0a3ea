"""Plain values, and descriptions of tensors, out of a pickle; nothing that it names is ever imported or called.

Python's own unpickler believes what a file says about sizes and places, and so it can be made to take all memory. Here
every opcode makes a value of a bounded size beyond its own bytes, and copies nothing that a short reference in the file
could have copied again and again.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

_DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

#: No tensor of torch has more dimensions.
_MOST_DIMENSIONS: Final = 64

#: More than any function that torch names takes.
_MOST_ARGUMENTS: Final = 10

#: Opcodes: fewer than torch describes any tensor with.
_PRICE_OF_A_TENSOR: Final = 10

#: Characters of a storage's name: torch counts, or writes where it lay in memory.
_LONGEST_KEY: Final = 100

#: What torch counts with. Larger whole numbers can be made to have one hash, and a dict of many such keys takes hours.
_MOST: Final = 2**63


class BadTensorFile(Exception):
    """Not a file of tensors, or a damaged one; the text says what it is, without the file's name."""


class NeedsCode(BadTensorFile):
    """The file holds something that only running code from it could restore."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A stretch of numbers in the file.

    Attributes:
        dtype: of the numbers.
        key: its name in the file.
        numel: how many there are.
    """

    dtype: torch.dtype
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that has not been read yet; ``offset`` and ``stride`` count elements of its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return self.storage.dtype


def described_storage(kind: object, dtype: object, key: object, numel: object) -> Storage:
    """The storage that a persistent id describes; `ValueError` if it is none."""
    named = isinstance(key, str) and len(key) <= _LONGEST_KEY
    if kind != "storage" or not isinstance(dtype, torch.dtype) or not named or not _natural(numel):
        raise ValueError("a storage is described in a way that torch does not use")
    return Storage(dtype, key, numel)  # type: ignore[arg-type]  # all three were looked at


@dataclass(frozen=True, slots=True)
class _Call:
    """A function of ours in the place of one that the file names."""

    function: Callable[..., Any]


def _natural(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _stored(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Stored:
    """What ``torch._utils._rebuild_tensor_v2`` would make; every element lies inside the storage."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise TypeError("a tensor is described in a way that torch does not use")
    if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS or not all(map(_natural, (offset, *shape, *stride))):
        raise ValueError("a tensor has an impossible shape")
    numel = math.prod(shape)
    if numel == 0:  # torch lets an empty tensor lie anywhere
        return Stored(storage, 0, shape, stride)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    # More elements than the storage has would be a small one spread over a large tensor.
    if last >= storage.numel or numel > storage.numel:
        raise ValueError(f"a tensor of shape {shape} does not fit its storage of {storage.numel} numbers")
    return Stored(storage, offset, shape, stride)


def _parameter(data: Stored | Tensor, *_: object) -> Stored | Tensor:
    if not isinstance(data, Stored | Tensor):
        raise TypeError("a parameter is no tensor")
    return data


def _size(values: tuple[int, ...]) -> tuple[int, ...]:
    """What ``torch.Size`` would be: a copy, so that it must be short."""
    if not isinstance(values, tuple) or len(values) > _MOST_DIMENSIONS or not all(map(_natural, values)):
        raise ValueError("a shape is none")
    return values


def _ordered(pairs: list[Any] | tuple[Any, ...] = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _key(key: object) -> object:
    """A key of a dict: never a deep nest of tuples, whose hash would exhaust the stack."""
    if not isinstance(key, str | int | float | None) or (isinstance(key, int) and not -_MOST <= key < _MOST):
        raise TypeError("a key is neither text nor number")
    return key


_TENSOR: Final = _Call(_stored)
_ORDERED: Final = _Call(_ordered)
_KNOWN: Final[dict[str, Any]] = {
    "collections OrderedDict": _ORDERED,
    "torch._utils _rebuild_tensor": _TENSOR,
    "torch._utils _rebuild_tensor_v2": _TENSOR,
    "torch._utils _rebuild_parameter": _Call(_parameter),
    "torch Size": _Call(_size),
    **{f"torch {name}": dtype for name, dtype in _DTYPES.items()},
    **{f"torch.cuda {name}": dtype for name, dtype in _DTYPES.items()},
}

_NUMBERS: Final = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"})
_TEXTS: Final = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"})
_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED: Final = frozenset({"PROTO", "FRAME"})


def _no_storage(pid: tuple[Any, ...]) -> Storage:
    raise ValueError("a tensor stands where none can be")


def unpickle(
    data: BinaryIO,
    storage: Callable[[tuple[Any, ...]], Storage] = _no_storage,
    make: Callable[[Stored], Any] = lambda stored: stored,
) -> Any:
    """The value of the pickle at ``data``'s position, which ends behind it.

    Args:
        data: the bytes; what is built of them takes up to 110 times their room.
        storage: gives the storage for torch's name of it.
        make: gives what stands for a tensor.

    Raises:
        NeedsCode: it names something that is not known here.
        ValueError, TypeError, IndexError, KeyError, OverflowError, RuntimeError: it is damaged.
    """
    machine = _Machine(storage, make)
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    (value,) = machine.stack
    return value


@dataclass(slots=True)
class _Machine:
    """The part of pickle's stack machine that plain values and tensors need."""

    storage: Callable[[tuple[Any, ...]], Storage]
    make: Callable[[Stored], Any]
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    credit: int = 0  # opcodes, less what was made of references alone

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        self.credit += 1
        if name in _NUMBERS or name in _TEXTS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self.stack[-_TUPLES[name] :] = [tuple(self.stack[-_TUPLES[name] :])]
        elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            self.memo[argument] = self.stack[-1]
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            self.stack.append(self.memo[argument])
        elif name not in _IGNORED:
            handler = _HANDLERS.get(name)
            if handler is None:
                raise NeedsCode("holds objects that only running code from the file could restore")
            handler(self, argument)

    def _mark(self, _: object) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _tuple(self, _: object) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _append(self, _: object) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: object) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("something is appended to what is no list")
        self.stack[-1].extend(items)

    def _setitem(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self, _: object) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise TypeError("an entry is set in what is no dict")
        self.stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _global(self, argument: str) -> None:
        if argument not in _KNOWN:
            raise NeedsCode("holds objects that only running code from the file could restore")
        self.stack.append(_KNOWN[argument])

    def _stack_global(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a name is no text")
        self._global(f"{module} {name}")

    def _persistent(self, _: object) -> None:
        self.stack.append(self.storage(self.stack.pop()))

    def _reduce(self, _: object) -> None:
        arguments, call = self.stack.pop(), self.stack.pop()
        if not isinstance(call, _Call) or not isinstance(arguments, tuple):
            raise NeedsCode("holds objects that only running code from the file could restore")
        if len(arguments) > _MOST_ARGUMENTS:  # which Python would copy
            raise ValueError("a call has too many arguments")
        self._pay(call, arguments)
        value = call.function(*arguments)
        self.stack.append(self.make(value) if call is _TENSOR else value)

    def _pay(self, call: _Call, arguments: tuple[Any, ...]) -> None:
        """Let references to what was described once make no more than so many opcodes would in an honest file."""
        if call is _ORDERED:
            if not all(isinstance(pairs, list | tuple) for pairs in arguments):
                raise TypeError("a dict is made of what are no pairs")
            self.credit -= sum(map(len, arguments))
        if call is _TENSOR:
            self.credit -= _PRICE_OF_A_TENSOR
        if self.credit < 0:
            raise ValueError("one list or tensor is described once and made again and again")

    def _build(self, _: object) -> None:
        self.stack.pop()  # a state dict's metadata
        if type(self.stack[-1]) is not dict:
            raise NeedsCode("holds objects that only running code from the file could restore")


_HANDLERS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "MEMOIZE": _Machine._memoize,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._setitem,
    "SETITEMS": _Machine._setitems,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "BINPERSID": _Machine._persistent,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
}
