"""The cases of the set for detectors: arrays, tolerances, and its fill rule."""

import zlib
from collections.abc import Sequence
from functools import partial
from itertools import count, takewhile
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kdtable import methods
from kdtable.methods.base import Setting
from kdtable.methods.objective import Objective
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.golden_arrays import Dotted, _filled
from tests.golden_data import checks, manifest

DTYPES = (torch.float64, torch.float32)
#: Of numbers that the reference has in float32.
SINGLE = 2e-6


class Case(Dotted):
    """A case's arrays. Tolerances are relative alone, but for arrays that are zero: MGD's gradients are of 1e-9."""

    def leaves(self, prefix: str) -> list[Tensor]:
        return [self.leaf(name) for name in self.numbered(prefix)]

    def arrays(self, prefix: str) -> list[Tensor]:
        return [self.array(name) for name in self.numbered(prefix)]

    def numbered(self, prefix: str) -> list[str]:
        return list(takewhile(self.__contains__, (f"{prefix}{number}" for number in count())))

    def given(self, prefix: str) -> dict[str, Tensor]:
        """Parameters and statistics whose names begin so, without that beginning."""
        starts = (f"param.{prefix}", f"buffer.{prefix}")
        return {name.removeprefix(start): self.array(name) for start in starts for name in self.names(start)}

    def check_all(self, found: dict[str, Any]) -> None:
        for name, value in found.items():
            self.check(name, value)

    def check(self, name: str, value: Tensor | float | list[float] | None) -> None:
        expected = self._arrays[name]
        if name in self.data.get("zero", ()):
            self._open.discard(name)
            bound = manifest(self.entry.folder)["atol64" if self.dtype == torch.float64 else "atol32"]
            assert torch.as_tensor(value).abs().max() <= bound, f"{self.entry} {name}: not 0"
        elif expected.dtype == torch.float32:
            self._open.discard(name)
            torch.testing.assert_close(
                torch.as_tensor(value).float().reshape(expected.shape), expected, rtol=SINGLE, atol=0
            )
        else:
            super().check(name, value)

    def _tolerance(self, largest: Tensor) -> Tensor:
        if self.dtype == torch.float64:
            return manifest(self.entry.folder)["rtol64"] * largest
        return self.data["f32_tol"] * largest


detection = partial(checks, "detection", arrays=Case, dtypes=DTYPES)


def filled(key: str, shape: tuple[int, ...], salt: int) -> Tensor:
    """An array of the fill rule: maps are standard normal, all else as in the other sets."""
    draw = np.random.default_rng(zlib.crc32(key.encode()) + salt)
    if key.endswith(("weight", "bias", "running_mean", "running_var")):
        return torch.as_tensor(_filled(draw, key, shape))
    return torch.as_tensor(draw.standard_normal(shape))


def built(row: str, student: DetectorOutputs, teacher: DetectorOutputs, dtype: torch.dtype, **extra: Any) -> Any:
    """The method of a row on detectors, as a run builds it; ``network`` is the teacher itself."""
    kind = methods.get(row, "detection")
    recipe = extra.pop("recipe", Recipe(epochs=1, batch_size=4, lr=0.1, milestones=()))
    network = extra.pop("network", None)
    terms = extra.pop("terms", {kind.term: 1.0})
    labels = torch.zeros(0, dtype=torch.int64)
    setting = Setting(
        recipe,
        Objective.of(kind.hyper, terms, extra),
        labels,
        3,
        cast(Outputs, student),
        cast(Outputs, teacher),
        teacher=network,
        base_terms={},
    )
    return kind(setting).to(dtype).train()


def batch(boxes: Sequence[Tensor] = (), images: int = 2) -> DetectionBatch:
    """One whose pixels no method reads."""
    boxes = tuple(boxes) or (torch.zeros(0, 4),) * images
    count = len(boxes)
    labels = tuple(torch.zeros(len(each), dtype=torch.int64) for each in boxes)
    index = torch.arange(count)
    return DetectionBatch(
        torch.zeros(count, 3, 32, 32), ((32, 32),) * count, ((32, 32),) * count, boxes, labels, index, 1, index
    )
