"""Reading the golden sets, and comparing with them by their own rule."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GOLDEN = Path(__file__).parent / "golden" / "crd"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())


def cases(*methods: str) -> list[dict[str, Any]]:
    """The loss cases of the named methods."""
    return [case for case in MANIFEST["cases"] if case["method"] in methods]


class Arrays:
    """The arrays of a case in one floating-point type."""

    def __init__(self, case: dict[str, Any], dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        with np.load(GOLDEN / case["file"]) as file:
            self._arrays = {name: torch.from_numpy(file[name]) for name in file.files}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._arrays if name.startswith(prefix)]

    def given(self, name: str) -> torch.Tensor:
        array = self._arrays[name]
        return array.to(self.dtype) if array.is_floating_point() else array

    def check(self, name: str, value: torch.Tensor) -> None:
        """By the manifest's rule: |a - b| <= atol + rtol * max |b|."""
        expected = self._arrays[name].double()
        double = self.dtype == torch.float64
        atol = MANIFEST["atol64"] if double else MANIFEST["atol32"]
        rtol = MANIFEST["rtol64"] if double else self.case["f32_tol"]
        gap = (value.detach().double().reshape(expected.shape) - expected).abs().max()
        assert gap <= atol + rtol * expected.abs().max(), f"{self.case['id']} {name}: off by {gap:.3g}"


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
