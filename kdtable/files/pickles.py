"""Inspect a pickle before torch reads it: the names and storages in it, and whether it expands.

Torch's reader runs no code, but it trusts the pickle: it allocates ``bytearray(2**40)``, copies a list of a million
items as often as the file refers to it, and exhausts the stack when it hashes deeply nested tuples. This module follows
the opcodes with sizes instead of values, and so refuses such a file before it takes memory.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import torch

STORAGES: Final = {
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

#: Names in files of dense tensors and plain values; their results are not larger than their arguments.
PLAIN: Final = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "builtins.complex",
        "_codecs.encode",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        *(f"torch.{name}" for name in STORAGES),
        *(f"torch.cuda.{name}" for name in STORAGES),
        *(f"torch.{str(dtype).removeprefix('torch.')}" for dtype in STORAGES.values()),
    }
)

#: Allowed codecs. Others ("hex") turn bytes into twice as many bytes, again and again.
_CODECS: Final = frozenset({"latin1", "latin-1", "utf-8", "utf8", "ascii"})

#: Limit of nested tuples, since hashing recurses into them; torch's and NumPy's pickles have three levels.
_MOST_NESTED: Final = 50

#: Values that may be copied in excess of those described: shapes, dtypes and names that repeat.
_CREDIT: Final = 100_000

#: Larger integers can be crafted to have equal hashes, and a dict with many such keys takes hours.
_LARGE: Final = 2**64
_PRICE_OF_A_LARGE_NUMBER: Final = 1000


@dataclass(slots=True)
class Value:
    """What is known of a value.

    Attributes:
        size: number of characters, or of items including nested ones.
        depth: of nested tuples.
        content: a text, number or name; a tuple's items; the contents of a list's items.
        made_by: name of the function that was called for it.
    """

    size: int = 1
    depth: int = 0
    content: Any = None
    made_by: str = ""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names, with its module."""

    text: str


@dataclass(frozen=True, slots=True)
class Pickle:
    """A pickle's summary.

    Attributes:
        names: of classes and functions, by their Python 3 names.
        mappings: those of ``names`` whose results get items by key.
        storages: torch's storages by key: class, number of elements, and the rest of the description.
        content: a number or text; for a list, the contents of its items.
    """

    names: frozenset[str]
    mappings: frozenset[str]
    storages: dict[str, tuple[str, int, tuple[object, ...]]]
    content: object


def look_at(data: BinaryIO) -> Pickle:
    """Summarise the pickle at ``data``'s position, and move the position behind it.

    Raises:
        ValueError, TypeError, IndexError, KeyError, AttributeError: torch could not read it either, or it expands.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    (value,) = machine.stack
    return Pickle(frozenset(machine.names), frozenset(machine.mappings), machine.storages, value.content)


@dataclass(slots=True)
class _Machine:
    stack: list[Value] = field(default_factory=list)
    marks: list[list[Value]] = field(default_factory=list)
    memo: dict[int, Value] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    mappings: set[str] = field(default_factory=set)
    storages: dict[str, tuple[str, int, tuple[object, ...]]] = field(default_factory=dict)
    credit: int = _CREDIT

    def step(self, name: str, argument: Any) -> None:
        """Follow one opcode."""
        self.credit += 1
        if name in _ATOMS:
            self._atom(argument)
        elif name in _GET:
            self.stack.append(self.memo[argument])
        elif name in _PUT:
            self.memo[argument] = self.stack[-1]
        elif name in _TUPLES:
            items = self._since_mark() if name == "TUPLE" else self._last(_TUPLES[name])
            self.stack.append(_tuple(items))
        elif name != "PROTO":
            handler = _HANDLERS.get(name)
            if handler is None:
                raise ValueError(f"its description has the opcode {name}")
            handler(self, argument)

    def _atom(self, argument: object) -> None:
        size = len(argument) if isinstance(argument, str | bytes) else 1
        self.credit += size
        if isinstance(argument, int) and abs(argument) >= _LARGE:
            self._pay(_PRICE_OF_A_LARGE_NUMBER)
        self.stack.append(Value(size, content=argument))

    def _global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.names.add(f"{module}.{name}")
        self.stack.append(Value(content=Name(f"{module}.{name}")))

    def _mark(self, _: object) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Value]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _last(self, count: int) -> list[Value]:
        if len(self.stack) < count:
            raise IndexError("its description takes what is not there")
        start = len(self.stack) - count
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _list(self, _: object) -> None:
        self.stack.append(Value(content=[]))

    def _fill(self, items: list[Value]) -> None:
        self.stack[-1].size += len(items)
        if isinstance(self.stack[-1].content, list):
            self.stack[-1].content += [item.content for item in items]

    def _map(self, items: list[Value]) -> None:
        self._fill(items)
        self.mappings.add(self.stack[-1].made_by)

    def _call(self, _: object) -> None:
        function, arguments = self._last(2)
        name = function.content.text if isinstance(function.content, Name) else f"{function.made_by}()"
        if name == "()" or not isinstance(arguments.content, tuple):
            raise TypeError("its description calls what is no function")
        self.names.add(name)
        self._pay(arguments.size)
        if name == "_codecs.encode" and arguments.content[1].content not in _CODECS:
            raise ValueError("its description has bytes in a strange code")
        self.stack.append(Value(arguments.size, arguments.depth, made_by=name))

    def _build(self, _: object) -> None:
        (state,) = self._last(1)
        self._pay(state.size)
        self.stack[-1].size += state.size

    def _pay(self, price: int) -> None:
        """Spend credit on a copy; an honest file never runs out.

        Raises:
            ValueError: the credit is used up.
        """
        self.credit -= price
        if self.credit < 0:
            raise ValueError("what its description has once is copied again and again")

    def _storage(self, _: object) -> None:
        items = [value.content for value in self._last(1)[0].content]
        if items[0] == "module":  # a class with its source code, in the format from before torch 1.6
            self.stack.append(Value(content=items[1]))
            return
        kind, of, key, location, numel, *rest = items
        if kind != "storage" or not isinstance(of, Name) or of.text.rpartition(".")[2] not in STORAGES:
            raise ValueError("a storage is described in a way that torch does not use")
        if not isinstance(key, str) or not isinstance(location, str) or type(numel) is not int or numel < 0:
            raise ValueError("a storage is described in a way that torch does not use")
        found = (of.text.rpartition(".")[2], numel, tuple(rest))
        if self.storages.setdefault(key, found) != found:
            raise ValueError(f"storage {key} is described in two ways")
        self.stack.append(Value())


def _tuple(items: list[Value]) -> Value:
    depth = 1 + max((item.depth for item in items), default=0)
    if depth > _MOST_NESTED:
        raise ValueError("its description nests too deeply")
    return Value(1 + sum(item.size for item in items), depth, tuple(items))


_ATOMS: Final = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
    | {"NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_SET"}
)
_GET: Final = frozenset({"BINGET", "LONG_BINGET"})
_PUT: Final = frozenset({"BINPUT", "LONG_BINPUT"})
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": 0}
_HANDLERS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    "GLOBAL": _Machine._global,
    "EMPTY_LIST": _Machine._list,
    "MARK": _Machine._mark,
    "APPEND": lambda machine, _: machine._fill(machine._last(1)),
    "APPENDS": lambda machine, _: machine._fill(machine._since_mark()),
    "SETITEM": lambda machine, _: machine._map(machine._last(2)),
    "SETITEMS": lambda machine, _: machine._map(machine._since_mark()),
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._storage,
}
