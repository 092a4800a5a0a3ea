"""Runs that are stopped, by force or by request, go on to the same numbers."""

import json
import shlex
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.command import (
    SMALL,
    SMALL_CRD,
    TEACHER,
    Call,
    Shell,
    assert_same_numbers,
    finish,
    interruptible,
    runs_in,
    wait_for,
    write_images,
    write_teacher,
)
from tests.faults.forks import Forks

PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "4", *SMALL, *TEACHER)
KILLED = (*PAIR, "--methods", "vanilla,kd,at,crd", *SMALL_CRD)


def _supply(folder: Path) -> None:
    """A set that is large enough to be interrupted while a run is at it."""
    write_images(folder / "tiny.npz", train=160)
    write_teacher(folder / "resnet14.pth")


@dataclass(frozen=True)
class Stopped:
    """A folder with the results of a killed command, and those of an undisturbed one beside them."""

    folder: Path

    def copied_to(self, folder: Path) -> Path:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return folder


@pytest.fixture(scope="module")
def stopped(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    _supply(folder)
    command = forks.start(folder, *KILLED)
    try:
        command.wait_for("epoch 1/4")
    finally:
        command.kill()
    assert command.finish().code == -signal.SIGKILL
    assert [run["status"] for run in runs_in(folder / "results").values()] == ["running"] * 4
    assert list((folder / "results").glob("runs/*/checkpoint.pt"))
    assert forks.run(folder, *KILLED, "--results", "undisturbed").code == 0
    return Stopped(folder)


def test_status_of_a_killed_command(stopped: Stopped, tmp_path: Path, call: Call) -> None:
    stopped.copied_to(tmp_path)
    done = call("status")
    assert done.code == 0
    assert "0 done" in done.out
    assert "4 interrupted" in done.out
    assert "running" not in done.out


def test_a_killed_command_goes_on_to_the_same_numbers(stopped: Stopped, tmp_path: Path, call: Call) -> None:
    stopped.copied_to(tmp_path)
    done = call(*KILLED)
    assert done.code == 0, done.err
    assert "vanilla seed 1 main epoch 1/4" not in done.err
    assert "vanilla seed 1 main epoch 4/4" in done.err
    assert_same_numbers(tmp_path / "results", tmp_path / "undisturbed")
    assert _left_over(tmp_path) == []


def test_what_a_killed_command_was_writing_is_cleared_away(stopped: Stopped, tmp_path: Path, call: Call) -> None:
    stopped.copied_to(tmp_path)
    for run in (tmp_path / "results" / "runs").iterdir():
        (run / ".checkpoint.pt.0123456789abcdef").write_bytes(b"half")
        (run / ".student.safetensors.0123456789abcdef").write_bytes(b"half")
    assert call(*KILLED).code == 0
    assert _left_over(tmp_path) == []


def test_a_damaged_checkpoint_is_set_aside(stopped: Stopped, tmp_path: Path, call: Call) -> None:
    stopped.copied_to(tmp_path)
    checkpoints = sorted((tmp_path / "results").glob("runs/*/checkpoint.pt"))
    for checkpoint in checkpoints:
        content = checkpoint.read_bytes()
        checkpoint.write_bytes(content[: len(content) // 2])
    done = call(*KILLED)
    assert done.code == 0, done.err
    assert done.err.count("set aside as checkpoint.pt.corrupt") == len(checkpoints)
    assert all(checkpoint.with_name("checkpoint.pt.corrupt").exists() for checkpoint in checkpoints)
    assert "vanilla seed 1 main epoch 1/4" in done.err
    assert_same_numbers(tmp_path / "results", tmp_path / "undisturbed")
    assert _left_over(tmp_path) == []


def _left_over(folder: Path) -> list[Path]:
    """What only an unfinished run needs."""
    files = (folder / "results").glob("runs/*/*")
    return [file for file in files if file.name.startswith(".") or file.name == "checkpoint.pt"]


def test_an_interruption(tmp_path: Path, call: Call) -> None:
    _supply(tmp_path)
    words = (*PAIR, "--methods", "vanilla,kd", "--seeds", "2")
    with interruptible():
        process = Shell(tmp_path).start(*words)
    try:
        wait_for("seed 2 main epoch 1/4", process)
        process.send_signal(signal.SIGINT)
        done = finish(process)
    finally:
        process.kill()
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    assert done.errors[-1].startswith("kdtable: interrupted")
    assert done.errors[-1].endswith(shlex.join(["kdtable", *words]))

    status = call("status").out
    assert "2 done" in status
    assert "2 missing" in status
    _assert_seeds(call, done=1)
    assert "(1/2)" in call("report", "--format", "markdown").out
    assert "(1/2)" in call("report").out

    again = call(*words)
    assert again.code == 0, again.err
    assert "seed 1" not in again.err
    assert "vanilla seed 2 main epoch 1/4" not in again.err
    _assert_seeds(call, done=2)
    assert "(1/2)" not in again.out
    assert _left_over(tmp_path) == []


def _assert_seeds(call: Call, done: int) -> None:
    (table,) = json.loads(call("report", "--format", "json").out)
    counts = {cell["row"]: (cell["n"], cell["asked"]) for cell in table["cells"] if cell["row"] != "teacher"}
    assert counts == {"student": (done, 2), "kd": (done, 2)}


def test_two_commands_on_one_store(forks: Forks, tmp_path: Path, call: Call) -> None:
    _supply(tmp_path)
    first = forks.start(tmp_path, *PAIR, "--methods", "vanilla", KDTABLE_LEASE="1000")
    second = None
    try:
        first.wait_for("epoch 1/4")
        first.send_signal(signal.SIGSTOP)  # so that it is surely at work while the others are called
        second = forks.start(tmp_path, *PAIR, "--methods", "vanilla", "--seeds", "2", KDTABLE_LEASE="1000")
        said = second.wait_for("waiting for them")
        status, report = call("status"), call("report", "--format", "json")
        elsewhere = call(*PAIR, "--methods", "vanilla", "--epochs", "1", "--results", "elsewhere")
        first.send_signal(signal.SIGCONT)
        done, shared = first.finish(), second.finish()
    finally:
        first.kill()
        if second:
            second.kill()
    assert "vanilla seed 2 main epoch 4/4" in said, "it trains first what nobody else does"
    assert f"1 run is being trained on {socket.gethostname()} (process {first.pid}): waiting for them" in said
    assert "1 done, 1 running" in status.out
    assert f"running on {socket.gethostname()} (process {first.pid}, seen " in status.out
    assert report.code == 0
    assert elsewhere.code == 0
    assert (done.code, shared.code) == (0, 0), done.err + shared.err
    assert "vanilla seed 1 main epoch 4/4" in done.err
    assert "seed 1" not in shared.err
    assert [run["status"] for run in runs_in(tmp_path / "results").values()] == ["done", "done"]
    assert _left_over(tmp_path) == []
