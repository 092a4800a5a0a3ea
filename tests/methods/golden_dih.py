"""Reading the golden set of the DIH paper's repository, and comparing with it by the manifest's rule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdtable.data import Batch
from kdtable.methods.base import Method
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.training.step import weighted_sum

GOLDEN = Path(__file__).parents[1] / "golden" / "dih"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())
RECIPE = Recipe(epochs=1, batch_size=4, lr=0.1, milestones=(), nesterov=True)

#: Of the largest magnitude of an array.
LOSSES = {torch.float64: 1e-9, torch.float32: 1e-4}
STEPS = 1e-7


def assert_close(value: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    gap = (value.detach().double().reshape(expected.shape) - expected).abs().max()
    assert gap <= tolerance * expected.abs().max(), f"{name}: off by {gap:.3g}"


class Arrays:
    """The arrays of one loss case or one run of steps."""

    def __init__(self, file: str, case: str, dtype: torch.dtype, tolerance: float) -> None:
        self.case, self.dtype, self.tolerance = case, dtype, tolerance
        with np.load(GOLDEN / file) as content:
            self._arrays = {
                name.removeprefix(f"{case}__"): torch.from_numpy(content[name])
                for name in content.files
                if name.startswith(f"{case}__")
            }

    def names(self) -> list[str]:
        return list(self._arrays)

    def given(self, name: str) -> Tensor:
        array = self._arrays[f"in__{name}"]
        return array.to(self.dtype) if array.is_floating_point() else array

    def leaf(self, name: str) -> Tensor:
        return self.given(name).requires_grad_()

    def check(self, name: str, value: Tensor | None) -> None:
        assert value is not None, name
        assert_close(value, self._arrays[name], self.tolerance, f"{self.case} {name}")

    def check_sum(self, names: tuple[str, ...], value: Tensor) -> None:
        """Of arrays that ours has in one."""
        expected = torch.stack([self._arrays[name] for name in names]).sum(dim=0)
        assert_close(value, expected, self.tolerance, f"{self.case} {' + '.join(names)}")

    def check_sums(self, name: str, value: Tensor) -> None:
        """Of an array (n, k) whose rows' sums ours has."""
        assert_close(value, self._arrays[name].sum(dim=1), self.tolerance, f"{self.case} {name}")

    def batch(self) -> Batch:
        """One with the case's labels, if it has any; its images are of no use."""
        labels = self.given("labels") if "in__labels" in self._arrays else torch.zeros(4, dtype=torch.int64)
        return Batch(torch.zeros(len(labels), 3, 1, 1), labels, torch.arange(len(labels)), 1)


def objective(method: Method, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
    """The weighted sum of the main stage's terms, as a training step has it."""
    stage = method.stages()[-1]
    return weighted_sum([method.loss(term.name, student, teacher, batch) for term in stage.terms], stage)
