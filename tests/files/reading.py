"""Read files of tensors in tests, and what forged ones claim."""

import io
import resource
import tracemalloc
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdtable.files.tensor_file import TensorFile
from tests.tensor_files import Claim


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


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


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


class Anything:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced
