import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.teachers.teacher_site import Case, Small, as_file, open_site


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with open_site() as site:
        yield Case(site, tmp_path / "t")


@pytest.fixture
def checkpoint() -> bytes:
    """A checkpoint as the CRD benchmark writes them, of a Small network with ten classes."""
    torch.manual_seed(0)
    return as_file({"epoch": 240, "model": Small().state_dict(), "accuracy": torch.tensor([75.0])})


@dataclass(frozen=True)
class Trap:
    """Unpickled by a careless reader, it makes a folder."""

    marker: Path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")
