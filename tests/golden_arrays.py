"""The arrays of a golden case in the three layouts that the sets have, and comparing with them by the sets' rules."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from kdtable.data import Batch
from tests.golden_data import Entry, manifest


class Arrays:
    """The arrays of a case in one floating-point type, and which of the expected ones were compared so far."""

    def __init__(self, entry: Entry, dtype: torch.dtype = torch.float64) -> None:
        self.entry, self.data, self.dtype = entry, entry.data, dtype
        self.hyper: dict[str, Any] = self.data.get("hyper", self.data.get("params", {}))
        self._arrays = {name: torch.from_numpy(array) for name, array in self._read()}
        self._open = set(filter(self._is_expected, self._arrays))

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self._arrays if name.startswith(prefix)]

    def array(self, name: str) -> Tensor:
        """One of the arrays as it is used for computing."""
        array = self._arrays[name]
        return array.to(self.dtype) if array.is_floating_point() else array

    def check(self, name: str, value: Tensor | float | list[float] | None) -> None:
        """Compare an expected array with what was found, by the rule of the set."""
        assert value is not None, f"{self.entry} {name}: there is none"
        expected = self._arrays[name]
        self._open.discard(name)
        found = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        found = found.detach().reshape(expected.shape)
        if not expected.is_floating_point():
            assert torch.equal(found.to(expected.dtype), expected), f"{self.entry} {name}: {found} is not {expected}"
        elif expected.numel():
            expected = expected.double()
            gap, largest = (found.double() - expected).abs().max(), expected.abs().max()
            assert gap <= self._tolerance(largest), f"{self.entry} {name}: off by {gap:.3g} of {largest:.3g}"

    def leave(self, name: str) -> None:
        """Say of an expected array that it is a fact about the reference, and no target."""
        self._open.discard(name)

    def assert_all_compared(self) -> None:
        assert not self._open, f"{self.entry}: nothing was compared with {', '.join(sorted(self._open))}"

    def _read(self) -> Iterator[tuple[str, Any]]:
        with np.load(self.entry.folder / self.data["file"]) as file:
            yield from file.items()

    def _is_expected(self, name: str) -> bool:
        raise NotImplementedError

    def _tolerance(self, largest: Tensor) -> Tensor:
        """How far a number may be from an expected array's, whose largest magnitude is this."""
        raise NotImplementedError


class Dotted(Arrays):
    """``in.x``, ``param.m.x``, ``buffer.m.x`` are given; ``out.x``, ``grad.x``, ``pgrad.m.x``, ``buffer_after.m.x``."""

    def leaf(self, name: str) -> Tensor:
        return self.array(name).clone().requires_grad_()

    def _is_expected(self, name: str) -> bool:
        return name.startswith(("out.", "grad.", "pgrad.", "buffer_after."))

    def _tolerance(self, largest: Tensor) -> Tensor:
        rules = manifest(self.entry.folder)
        if self.dtype == torch.float64:
            return rules["atol64"] + rules["rtol64"] * largest
        return rules["atol32"] + self.data["f32_tol"] * largest


class Slashed(Arrays):
    """``in/x`` and ``par/x`` are given; ``out/x``, which :meth:`check` calls ``x``."""

    def given(self, name: str) -> Tensor:
        return self.array(f"in/{name}")

    def leaf(self, name: str) -> Tensor:
        return self.given(name).clone().requires_grad_()

    def par(self, prefix: str) -> dict[str, Tensor]:
        """The parameters whose names begin so, without that beginning."""
        start = f"par/{prefix}"
        return {name.removeprefix(start): self.array(name) for name in self.names(start)}

    def count(self, prefix: str, start: int = 0) -> int:
        """How many inputs there are of names like ``s0``, ``s1``."""
        number = start
        while f"in/{prefix}{number}" in self:
            number += 1
        return number - start

    def outs(self, prefix: str = "") -> list[str]:
        """The names of the expected arrays that begin so."""
        return [name.removeprefix("out/") for name in self.names(f"out/{prefix}")]

    def out(self, name: str) -> Tensor:
        return self._arrays[f"out/{name}"]

    def check(self, name: str, value: Tensor | float | list[float] | None) -> None:
        super().check(f"out/{name}", value)

    def leave(self, name: str) -> None:
        super().leave(f"out/{name}")

    def _is_expected(self, name: str) -> bool:
        return name.startswith("out/")

    def _tolerance(self, largest: Tensor) -> Tensor:
        """Closer than the sets ask, who take every array for one of ones at least: many gradients are far smaller."""
        return 1e-12 + float(self.data["rtol"]) * largest


class Shared(Arrays):
    """``ID__in__x`` are given, all else that begins with ``ID__`` is expected; a file has several cases.

    The manifest says how closely in words, for each part of the set.
    """

    TOLERANCES: ClassVar = {
        "losses": (1e-9, 1e-4),
        "models": (1e-8, None),
        "modules": (1e-8, None),
        "steps": (1e-7, None),
    }

    def given(self, name: str) -> Tensor:
        return self.array(f"in__{name}")

    def leaf(self, name: str) -> Tensor:
        return self.given(name).clone().requires_grad_()

    def expected(self, name: str) -> Tensor:
        """An expected array that is compared in another form."""
        self.leave(name)
        return self._arrays[name].double()

    def check_sum(self, names: tuple[str, ...], value: Tensor) -> None:
        """Of arrays that ours has in one."""
        self._assert_close(" + ".join(names), value, torch.stack([self.expected(name) for name in names]).sum(dim=0))

    def check_sums(self, name: str, value: Tensor) -> None:
        """Of an array (n, k) whose rows' sums ours has."""
        self._assert_close(f"rows of {name}", value, self.expected(name).sum(dim=1))

    def _assert_close(self, what: str, value: Tensor, expected: Tensor) -> None:
        gap = (value.detach().double().reshape(expected.shape) - expected).abs().max()
        assert gap <= self._tolerance(expected.abs().max()), f"{self.entry} {what}: off by {gap:.3g}"

    def batch(self) -> Batch:
        """One with the case's labels, if it has any; its images are of no use."""
        labels = self.given("labels") if "in__labels" in self else torch.zeros(1, dtype=torch.int64)
        return Batch(torch.zeros(len(labels), 3, 1, 1), labels, torch.arange(len(labels)), 1)

    def _read(self) -> Iterator[tuple[str, Any]]:
        part = self.entry.part
        file = self.data.get("file", "steps.npz" if part == "steps" else "models.npz")
        start = f"{self.entry.name}__"
        with np.load(self.entry.folder / file) as content:
            for name in filter(lambda name: name.startswith(start), content.files):
                yield name.removeprefix(start), content[name]

    def _is_expected(self, name: str) -> bool:
        return not name.startswith("in__")

    def _tolerance(self, largest: Tensor) -> Tensor:
        double, single = self.TOLERANCES[self.entry.part]
        return (double if self.dtype == torch.float64 else single) * largest


@contextmanager
def constants(function: Callable[..., Any], **values: Any) -> Iterator[None]:
    """Numbers of a case that a method's file has as constants, for as long as the block runs."""
    assert values.keys() <= function.__globals__.keys(), f"{function.__name__} has no {', '.join(values)}"
    with patch.dict(function.__globals__, values):
        yield


def fill(network: nn.Module, salt: int, key_of: Callable[[str], str] = str) -> None:
    """Give a network the weights of the golden fill rule; ``key_of`` tells the golden key of one of ours."""
    state = {}
    for key, tensor in network.state_dict().items():
        draw = np.random.default_rng(zlib.crc32(key_of(key).encode()) + salt)
        state[key] = torch.as_tensor(_filled(draw, key_of(key), tuple(tensor.shape)))
    network.load_state_dict(state)


def _filled(draw: np.random.Generator, key: str, shape: tuple[int, ...]) -> Any:
    if key.endswith("num_batches_tracked"):
        return np.array(0)
    if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
        return draw.uniform(0.5, 1.5, shape)
    if key.endswith(("bias", "running_mean")):
        return draw.standard_normal(shape) * 0.1
    fan_in = int(np.prod(shape[1:]))
    return draw.standard_normal(shape) * np.sqrt((2 if len(shape) == 4 else 1) / fan_in)
