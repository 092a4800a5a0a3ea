"""Cohorts that do not fit into memory are trained in parts, to the same numbers."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kdtable import methods
from kdtable.checkpoints import checkpoint
from kdtable.cli.progress import GridDisplay
from kdtable.execution import memory, train_cohort
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests.cli.command import (
    SMALL,
    SMALL_CRD,
    TEACHER,
    Call,
    assert_same_numbers,
    runs_in,
    write_images,
    write_teacher,
)
from tests.faults.forks import Forks

#: Three batches an epoch, of which the second epoch is the one that memory runs out in.
PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "3", *SMALL, *SMALL_CRD, *TEACHER)
GRID = (*PAIR, "--methods", "vanilla,kd,at,crd")


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that commands need, and the grid trained as one cohort."""
    folder = tmp_path_factory.mktemp("whole")
    write_images(folder / "tiny.npz")
    write_teacher(folder / "resnet14.pth")
    done = forks.run(folder, *GRID, "--results", "whole")
    assert done.code == 0, done.err
    assert "cohort 1/1: seed 1, 4 runs" in done.err
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


class Watched(GridDisplay):
    """Keeps how much of the bar is full after each event."""

    seen: list[float]

    def __init__(self) -> None:
        super().__init__()
        type(self).seen = []

    def stepped(self, runs: Sequence[str], images: int) -> None:
        super().stepped(runs, images)
        self._look()

    def reached(self, run: str, images: int) -> None:
        super().reached(run, images)
        self._look()

    def _look(self) -> None:
        (task,) = self._bar.tasks
        assert task.total
        self.seen.append(task.completed / task.total)


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    """The display of a command, as on a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("kdtable.cli.training.GridDisplay", Watched)
    return Watched


class Device:
    """Room for so many members: with more of them in a cohort, memory runs out in the last step of epoch 2."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cohorts: list[int] = []
        steps: Counter[tuple[str, int, int]] = Counter()
        train, step = Cohort.train, Member.step

        def watched_train(cohort: Cohort) -> None:
            self.cohorts.append(len(cohort.members))
            train(cohort)

        def watched_step(member: Member, *batch_and_outputs: Any) -> None:
            attempt = (member.run_id, member.epoch, len(self.cohorts))
            steps[attempt] += 1
            if self.cohorts[-1] > room and member.epoch == 1 and steps[attempt] == 3:
                raise torch.OutOfMemoryError("tried to allocate 3 bytes\nand a long explanation")
            step(member, *batch_and_outputs)

        monkeypatch.setattr(Cohort, "train", watched_train)
        monkeypatch.setattr(Member, "step", watched_step)


@pytest.mark.parametrize(("room", "cohorts"), [(4, [4]), (3, [4, 2, 2]), (2, [4, 2, 2]), (1, [4, 2, 1, 1, 2, 1, 1])])
def test_when_memory_runs_out_the_halves_go_on(
    room: int, cohorts: list[int], folder: Path, call: Call, bar: type[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(room, monkeypatch)
    done = call(*GRID)
    assert done.code == 0, done.err
    assert device.cohorts == cohorts
    splits = [count for count in cohorts if count > room]
    assert done.err.count("memory ran out with") == len(splits)
    for count in set(splits):
        told = f"memory ran out with {count} runs together, so what is left goes on in two parts (tried to allocate"
        assert done.err.count(f"{told} 3 bytes)\n") == splits.count(count)
    assert max(bar.seen) <= 1
    assert bar.seen[-1] == 1
    assert any(later < earlier for earlier, later in zip(bar.seen, bar.seen[1:], strict=False)) == bool(splits)
    assert_same_numbers(folder / "results", folder / "whole")
    assert {file.name for file in (folder / "results").glob("runs/*/*")} == {"student.safetensors"}


def test_each_epoch_is_told_once(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Device(2, monkeypatch)
    done = call(*GRID)
    told = [line.partition(":")[0] for line in done.errors if " epoch " in line]
    rows = ("vanilla", "kd", "at", "crd")
    assert sorted(told) == sorted(
        f"cohort 1/1 resnet8 {row} seed 1 main epoch {e}/3" for row in rows for e in (1, 2, 3)
    )


def test_a_run_that_does_not_fit_alone_fails_alone(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Member.step

    def hungry(member: Member, *batch_and_outputs: Any) -> None:
        if isinstance(member.method, methods.get("crd")):
            raise MemoryError("not one byte")
        step(member, *batch_and_outputs)

    monkeypatch.setattr(Member, "step", hungry)
    done = call(*GRID)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert done.err.count("FAILED") == 1
    assert "FAILED resnet8 crd seed 1: it does not fit into memory (not one byte)" in done.err
    assert done.errors[-1].startswith("kdtable: 1 run failed")
    assert _statuses(folder) == {"vanilla": "done", "kd": "done", "at": "done", "crd": "failed"}


def test_a_teacher_that_does_not_fit_fails_only_the_runs_that_need_it(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = FrozenTeacher.outputs

    def hungry(teacher: FrozenTeacher, batch: Any, needs: frozenset[str]) -> Any:
        if "stages" in needs:
            raise torch.OutOfMemoryError("the maps do not fit")
        return outputs(teacher, batch, needs)

    monkeypatch.setattr(FrozenTeacher, "outputs", hungry)
    done = call(*PAIR, "--methods", "at,vanilla,kd,crd")
    assert done.code == 1
    assert _statuses(folder) == {"at": "failed", "vanilla": "done", "kd": "done", "crd": "done"}
    assert done.err.count("FAILED") == 1
    assert "FAILED resnet8 at seed 1: it does not fit into memory (the maps do not fit)" in done.err


def _once(function: Callable[..., Any], error: Exception, at: int) -> Callable[..., Any]:
    """``function``, of which one call, counted from 1, fails."""
    calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return function(*args, **kwargs)

    return failing


@pytest.mark.parametrize(
    ("place", "name", "at"),
    [(train_cohort, "build_member", 3), (checkpoint, "save", 2), (checkpoint, "save", 6)],
    ids=["while members are built", "while epoch 1 is kept", "while epoch 2 is kept"],
)
def test_memory_that_runs_out_between_steps(
    place: Any, name: str, at: int, folder: Path, call: Call, bar: type[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, _once(getattr(place, name), torch.OutOfMemoryError("no room"), at))
    done = call(*GRID)
    assert done.code == 0, done.err
    assert done.err.count("memory ran out with 4 runs together, so what is left goes on in two parts (no room)") == 1
    assert max(bar.seen) <= 1
    assert bar.seen[-1] == 1
    assert_same_numbers(folder / "results", folder / "whole")


def test_what_does_not_seem_to_fit_is_not_tried_together(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 0.0)
    done = call(*GRID)
    assert done.code == 0, done.err
    begun = [line for line in done.errors if ": seed 1, " in line]
    assert begun == [
        "cohort 1/4: seed 1, 1 run of resnet8: vanilla",
        "cohort 2/4: seed 1, 1 run of resnet8 with teacher resnet14: kd",
        "cohort 3/4: seed 1, 1 run of resnet8 with teacher resnet14: at",
        "cohort 4/4: seed 1, 1 run of resnet8 with teacher resnet14: crd",
    ]
    assert "memory ran out" not in done.err
    assert_same_numbers(folder / "results", folder / "whole")


def _statuses(folder: Path) -> dict[str, str]:
    return {str(run["row"]): str(run["status"]) for run in runs_in(folder / "results").values()}
