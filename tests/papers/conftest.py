"""What all tests of the papers' data share."""

from typing import Any

import pytest

from kdtable.data.names import resolve as resolve_data
from kdtable.data.spec import DataSpec
from kdtable.papers import loader
from kdtable.training import build
from tests.papers.resolving import PHOTOGRAPHS


@pytest.fixture(autouse=True)
def _resolved_from_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_from_names_alone(monkeypatch)


def resolve_from_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No photographs are listed, and a small network's shapes stand for all: neither says how a row is trained.

    Shapes decide which rows a pair can have, which these tests do not ask; to find those of all networks of all papers
    takes half a minute.
    """
    small = "resnet8", 10, 32
    shapes, norms = build.network_shapes(*small), build.network_norms(*small)

    def described(name: str, *size: Any, **options: Any) -> DataSpec:
        return PHOTOGRAPHS.get(name) or resolve_data(name, *size, **options)

    monkeypatch.setattr(loader, "resolve_data", described)
    monkeypatch.setattr(build, "network_shapes", lambda *_: shapes)
    monkeypatch.setattr(build, "network_norms", lambda *_: norms)
