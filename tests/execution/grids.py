"""A small grid, and a display that keeps what it is told."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdtable import plugins
from kdtable.execution.run_grid import Outcome, execute
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.given import GivenWeights
from kdtable.planning.request import Changes, DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teachers import teacher_finder
from tests.cli.command import write_images, write_teacher
from tests.plugins.written import METHOD, write


class Heard:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of all calls of one method."""
        return [arguments for called, *arguments in self.calls if called == name]


def write_grid(folder: Path) -> None:
    """Write what a grid needs."""
    write_images(folder / "tiny.npz")
    write_teacher(folder / "resnet14.pth")


@contextmanager
def plugged(folder: Path) -> Iterator[Path]:
    """A plug-in with the method ``near``, known as long as the block."""
    file = write(folder / "near.py", METHOD)
    plugins.load([file])
    try:
        yield file
    finally:
        plugins.unload()


def plan(
    seeds: Sequence[int], folder: Path = Path(), methods: Sequence[str] = ("vanilla", "kd")
) -> tuple[PlannedRun, ...]:
    """Two methods for each seed, two epochs each: a cohort for each seed."""
    data, changes = DataRequest(f"npz:{folder / 'tiny.npz'}"), Changes(epochs=2, batch_size=16)
    request = Request(["resnet14:resnet8"], methods, seeds, data=data, changes=changes)
    return resolve(request, teacher_finder(folder / "teachers", GivenWeights({"resnet14": folder / "resnet14.pth"})))


def train(planned_runs: Sequence[PlannedRun], results: Path, progress: Any = None, **how: Any) -> Outcome:
    """Train a grid on the CPU."""
    return execute(
        planned_runs,
        results,
        device=torch.device("cpu"),
        data_root=Path("data"),
        progress=progress or Heard(),
        **how,
    )
