"""A run whose checkpoint is damaged goes on from the one before, to the same numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.command import (
    SMALL,
    TEACHER,
    Call,
    assert_same_numbers,
    runs_in,
    write_images,
    write_teacher,
)
from tests.faults.forks import open_forks

GRID = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,kd", "--epochs", "4", *SMALL, *TEACHER)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that were killed in their fourth epoch, and undisturbed ones beside them."""
    folder = tmp_path_factory.mktemp("stopped")
    write_images(folder / "tiny.npz", train=160)
    write_teacher(folder / "resnet14.pth")
    with open_forks() as forks:
        command = forks.start(folder, *GRID)
        try:
            command.wait_for("kd seed 1 main epoch 3/4")
        finally:
            command.kill()
        command.finish()
        assert forks.run(folder, *GRID, "--results", "undisturbed").code == 0
    return folder


def _flip(path: Path) -> None:
    """One bit of a weight in the middle of the file."""
    weights = torch.load(path, weights_only=True)["student"]["layer2.0.conv1.weight"]
    content = bytearray(path.read_bytes())
    content[
        content.index(weights.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).numpy().tobytes())
    ] ^= 1
    path.write_bytes(content)


def _swap(path: Path) -> None:
    other = next(file for file in path.parents[1].glob("*/checkpoint.pt") if file != path)
    path.write_bytes(other.read_bytes())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped bit": _flip,
    "another run's": _swap,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_the_checkpoint_before_takes_its_place(case: str, stopped: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    runs = {run["row"]: str(run["id"]) for run in runs_in(tmp_path / "results").values()}
    bad = tmp_path / "results" / "runs" / runs["kd"] / "checkpoint.pt"
    DAMAGE[case](bad)
    damaged = bad.read_bytes()
    done = call(*GRID)
    assert done.code == 0, done.err
    assert "set aside as checkpoint.pt.corrupt" in done.err
    assert "kd seed 1 main epoch 3/4" in done.err
    assert "kd seed 1 main epoch 2/4" not in done.err
    assert "vanilla seed 1 main epoch 3/4" not in done.err
    assert bad.with_name("checkpoint.pt.corrupt").read_bytes() == damaged
    assert sorted(file.name for file in bad.parent.iterdir()) == ["checkpoint.pt.corrupt", "student.safetensors"]
    assert_same_numbers(tmp_path / "results", tmp_path / "undisturbed")


def test_a_run_begins_again_where_no_checkpoint_is_good(stopped: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    files = list((tmp_path / "results").glob("runs/*/checkpoint*.pt"))
    assert len(files) == 4
    for file in files:
        file.write_bytes(b"")
    done = call(*GRID)
    assert done.code == 0, done.err
    assert done.err.count("set aside as") == 4
    assert "kd seed 1 main epoch 1/4" in done.err
    assert_same_numbers(tmp_path / "results", tmp_path / "undisturbed")
