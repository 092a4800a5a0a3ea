"""What all tests of the papers' data share."""

from typing import Any

import pytest
import torch

from kdtable.data.names import resolve as resolve_data
from kdtable.data.spec import DataSpec
from kdtable.models.detection.outputs import DetectorOutputs
from kdtable.papers import loader
from kdtable.training import build
from tests.papers.resolving import PHOTOGRAPHS


@pytest.fixture(autouse=True)
def _resolved_from_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_from_names_alone(monkeypatch)


def detector_shapes(*, dense: bool) -> DetectorOutputs:
    """A detector's outputs with five levels and four taps."""
    levels = tuple(torch.zeros(1, 256, size, size) for size in (16, 8, 4, 2, 1))
    taps = tuple(torch.zeros(1, 64, size, size) for size in (16, 8, 4, 2))
    return DetectorOutputs(dense, levels=levels, taps=taps, class_logits=torch.zeros(0, 81))


def resolve_from_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No photographs are listed, and a small network's shapes stand for all: neither says how a row is trained.

    Shapes decide which rows a pair can have, which these tests do not ask; to find those of all networks of all papers
    takes half a minute.
    """
    small = "resnet8", 10, 32
    shapes, norms = build.network_shapes(*small), build.network_norms(*small)
    detectors = {family: detector_shapes(dense=family == "retinanet") for family in ("fasterrcnn", "retinanet")}

    def described(name: str, *size: Any, **options: Any) -> DataSpec:
        return PHOTOGRAPHS.get(name) or resolve_data(name, *size, **options)

    monkeypatch.setattr(loader, "resolve_data", described)

    def shapes_of(name: str, *_: Any) -> Any:
        family = name.partition("_")[0]
        return detectors.get(family, shapes)

    monkeypatch.setattr(build, "network_shapes", shapes_of)
    monkeypatch.setattr(build, "network_norms", lambda *_: norms)
