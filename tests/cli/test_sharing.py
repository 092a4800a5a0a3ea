"""Several commands on one store share the work, and take over from those that die or fall silent."""

import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.command import (
    SMALL,
    TEACHER,
    Done,
    assert_same_numbers,
    runs_in,
    write_images,
    write_teacher,
)
from tests.faults.forks import Command, Forks

PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "3", *SMALL, *TEACHER)
BOTH = (*PAIR, "--methods", "vanilla,kd")


@dataclass(frozen=True)
class Sharers:
    """Starts commands on one store."""

    forks: Forks
    folder: Path
    variables: dict[str, str]

    def start(self, *args: str) -> Command:
        return self.forks.start(self.folder, *args, **self.variables)


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that commands need, and the grids of two and four seeds trained by one of them alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_images(folder / "tiny.npz", train=160)
    write_teacher(folder / "resnet14.pth")
    for seeds in ("2", "4"):
        done = forks.run(folder, *BOTH, "--seeds", seeds, "--results", "undisturbed")
        assert done.code == 0, done.err
        shutil.copytree(folder / "undisturbed", folder / f"undisturbed-{seeds}")
    return folder


def _sharers(forks: Forks, undisturbed: Path, tmp_path: Path, url: str | None, lease: str) -> Sharers:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    return Sharers(forks, tmp_path, {"KDTABLE_LEASE": lease} | ({"KDTABLE_STORE": url} if url else {}))


def _assert_whole(folder: Path, url: str | None, seeds: str) -> None:
    """The grid is as an undisturbed command leaves it."""
    assert_same_numbers(folder / "results", folder / f"undisturbed-{seeds}", url)
    assert {run["status"] for run in runs_in(folder / "results", url).values()} == {"done"}
    assert {run["claimed_by"] for run in runs_in(folder / "results", url).values()} == {None}
    assert {file.name for file in (folder / "results").glob("runs/*/*")} == {"student.safetensors"}


def _epochs(*commands: Done) -> Counter[str]:
    """How often each epoch of each run was trained."""
    lines = [line.partition(" resnet8 ")[2] for done in commands for line in done.errors if " main epoch " in line]
    return Counter(line.partition(":")[0] for line in lines)


def test_four_commands_for_overlapping_grids(
    forks: Forks, undisturbed: Path, tmp_path: Path, store_url: str | None
) -> None:
    sharers = _sharers(forks, undisturbed, tmp_path, store_url, "60")
    requests = [("vanilla,kd", "4"), ("kd,vanilla", "2,4,1,3"), ("kd", "4"), ("vanilla", "4,3")]
    started = [sharers.start(*PAIR, "--methods", methods, "--seeds", seeds) for methods, seeds in requests]
    try:
        done = [command.finish() for command in started]
    finally:
        _kill(*started)
    assert [command.code for command in done] == [0] * 4, "\n".join(command.err for command in done)
    trained = _epochs(*done)
    assert len(trained) == 2 * 4 * 3
    assert set(trained.values()) == {1}, "no epoch was trained twice"
    _assert_whole(tmp_path, store_url, "4")


def test_a_killed_commands_runs_are_taken_over_at_once(
    forks: Forks, undisturbed: Path, tmp_path: Path, store_url: str | None
) -> None:
    sharers = _sharers(forks, undisturbed, tmp_path, store_url, "100000")  # which nobody waits for
    first, second = sharers.start(*BOTH, "--seeds", "2"), None
    try:
        first.wait_for("kd seed 1 main epoch 1/3")
        first.send_signal(signal.SIGSTOP)
        second = sharers.start(*BOTH, "--seeds", "2")
        said = second.wait_for("waiting for them")
        first.kill()
        assert first.finish().code == -signal.SIGKILL
        done = second.finish()
    finally:
        _kill(first, second)
    assert done.code == 0, done.err
    assert "seed 1 main" not in said
    assert "seed 1 main epoch 3/3" in done.err
    assert "vanilla seed 1 main epoch 1/3" not in done.err, "its checkpoint is gone on with"
    _assert_whole(tmp_path, store_url, "2")


def test_a_suspended_command_loses_its_runs_and_spoils_nothing(
    forks: Forks, undisturbed: Path, tmp_path: Path, store_url: str | None
) -> None:
    sharers = _sharers(forks, undisturbed, tmp_path, store_url, "5")
    first, second = sharers.start(*BOTH, "--seeds", "2"), None
    try:
        first.wait_for("kd seed 1 main epoch 1/3")  # both runs have stored it: it is not amid a transaction
        first.send_signal(signal.SIGSTOP)
        second = sharers.start(*BOTH, "--seeds", "2")
        said = second.wait_for("waiting for them")
        second.wait_for("vanilla seed 1 main epoch 2/3")
        first.send_signal(signal.SIGCONT)
        done = [first.finish(), second.finish()]
    finally:
        _kill(first, second)
    assert [command.code for command in done] == [0, 0], done[0].err + done[1].err
    assert "seed 1 main" not in said
    assert "was taken over by another process" in done[0].err
    assert "FAILED" not in done[0].err
    assert "seed 1 main epoch 2" not in done[0].err, "what it trained after that was not kept"
    _assert_whole(tmp_path, store_url, "2")


def _kill(*commands: Command | None) -> None:
    for command in commands:
        if command is not None:
            command.kill()
