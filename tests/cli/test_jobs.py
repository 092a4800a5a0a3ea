"""One command with several worker processes: the same numbers, and what happens when one of them is stopped."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from kdtable.hardware import available_cores
from tests.cli.command import (
    SECONDS,
    SMALL,
    TEACHER,
    Call,
    Done,
    Shell,
    assert_refused,
    assert_same_numbers,
    finish,
    interruptible,
    listing,
    query,
    runs_in,
    wait_for,
    write_images,
    write_teacher,
)
from tests.cli.conftest import GRID as ALL
from tests.faults.forks import Forks

PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "3", *SMALL, *TEACHER)
GRID = (*PAIR, "--methods", "vanilla,kd", "--seeds", "3")
WORKERS = ("--jobs", "2")
LEASE = "100000"  # seconds, for which nobody waits

two_cores = pytest.mark.skipif(available_cores() < 2, reason="needs two cores")


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that commands need, and the grid trained by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_images(folder / "tiny.npz", train=160)
    write_teacher(folder / "resnet14.pth")
    done = forks.run(folder, *GRID, "--results", "undisturbed")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def shell(undisturbed: Path, tmp_path: Path) -> Shell:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    return Shell(tmp_path, {"KDTABLE_LEASE": LEASE})


def assert_whole(folder: Path) -> None:
    """The grid is as one undisturbed process leaves it."""
    assert_same_numbers(folder / "results", folder / "undisturbed")
    assert {run["status"] for run in runs_in(folder / "results").values()} == {"done"}
    assert_nothing_is_held(folder)
    assert {file.name for file in (folder / "results").glob("runs/*/*")} == {"student.safetensors"}


def assert_nothing_is_held(folder: Path) -> None:
    assert {run["claimed_by"] for run in runs_in(folder / "results").values()} == {None}


def epochs_told(lines: list[str]) -> Counter[str]:
    """How often each epoch of each run was told of."""
    told = (re.search(r"resnet8 (.+ epoch \d+/\d+):", line) for line in lines)
    return Counter(match[1] for match in told if match)


def workers_of(command: "subprocess.Popen[str]", count: int = 2) -> list[psutil.Process]:
    """The worker processes of a command, as soon as there are so many."""
    while True:
        found = [child for child in psutil.Process(command.pid).children() if "spawn_main" in " ".join(_words(child))]
        if len(found) >= count:
            return found
        assert command.poll() is None, "the command ended before it had its workers"
        time.sleep(0.005)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def _busy_pids(folder: Path) -> list[int]:
    """Processes that hold claims."""
    held = query(folder / "results", "select distinct pid from workers join runs on runs.claimed_by = workers.id")
    return [int(str(row["pid"])) for row in held]


def _ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=SECONDS)
    return not alive


@two_cores
def test_two_workers_do_the_work_of_one_process(shell: Shell) -> None:
    done = shell.run(*GRID, *WORKERS)
    assert done.code == 0, done.err
    assert_whole(shell.folder)
    trained = epochs_told(done.errors)
    assert set(trained) == {
        f"{m} seed {s} main epoch {e}/3" for m in ("vanilla", "kd") for s in (1, 2, 3) for e in (1, 2, 3)
    }
    assert set(trained.values()) == {1}, "no epoch was trained twice"
    begun = [line.partition(":")[0] for line in done.errors if ": seed " in line]
    assert begun == ["cohort 1/3", "cohort 2/3", "cohort 3/3"]
    assert len(done.errors) == len(trained) + len(begun), done.err
    assert done.out.count("│ student") == 1
    assert "over 3 seeds" in done.out


@two_cores
@pytest.mark.parametrize(
    ("who", "when"),
    [
        ("the command alone", "they train"),
        pytest.param("a terminal's whole group", "they train", marks=pytest.mark.slow),
        ("a terminal's whole group", "its workers start"),
    ],
)
def test_an_interruption(who: str, when: str, shell: Shell, call: Call) -> None:
    with interruptible():
        command = shell.start(*GRID, *WORKERS, own_group=True)
    try:
        workers = workers_of(command)
        if when == "they train":
            wait_for("main epoch 1/3", command)
            _assert_cores_are_shared_out(workers)
        (os.kill if who == "the command alone" else os.killpg)(command.pid, signal.SIGINT)
        done = finish(command)
        assert _ended(workers)
    finally:
        command.kill()
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    assert [line for line in done.errors if "kdtable" in line] == [done.errors[-1]]
    assert done.errors[-1].startswith("kdtable: interrupted; finished epochs are kept. Go on with: kdtable run --pairs")
    assert_nothing_is_held(shell.folder)
    assert "running" not in {run["status"] for run in runs_in(shell.folder / "results").values()}
    if when == "they train":
        again = call(*GRID)
        assert again.code == 0, again.err
        assert_whole(shell.folder)


def _assert_cores_are_shared_out(workers: list[psutil.Process]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    first, second = (set(worker.cpu_affinity()) for worker in workers)
    assert first
    assert second
    assert not first & second
    assert first | second == os.sched_getaffinity(0)


@two_cores
def test_a_killed_worker(shell: Shell) -> None:
    command = shell.start(*GRID, *WORKERS)
    try:
        said = wait_for("main epoch 1/3", command)
        victim = _busy_pids(shell.folder)[0]
        os.kill(victim, signal.SIGKILL)
        done = finish(command)
    finally:
        command.kill()
    assert done.code == 0, done.err
    note = f"worker process {victim} was killed by SIGKILL (the system may have run out of memory): "
    assert done.errors.count(f"{note}the others take over its runs") == 1, done.err
    told = epochs_told((said + done.err).splitlines())
    assert set(told.values()) == {1}, "a finished epoch is not trained again"
    assert 16 <= len(told) <= 18, (
        "only what the victim had stored and not yet said, an epoch of its two runs, is untold"
    )
    assert "Traceback" not in done.err
    assert_whole(shell.folder)


@two_cores
def test_all_workers_are_killed(shell: Shell, call: Call) -> None:
    command = shell.start(*GRID, *WORKERS)
    try:
        workers = workers_of(command)
        wait_for("main epoch 1/3", command)
        for worker in workers:
            worker.kill()
        done = finish(command)
    finally:
        command.kill()
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    assert done.err.count("was killed by SIGKILL") == 2
    assert [line for line in done.errors if line.startswith("kdtable: ")] == [done.errors[-1]]
    assert "no worker process is left; finished epochs are kept. Go on with: kdtable run" in done.errors[-1]
    again = call(*GRID)
    assert again.code == 0, again.err
    assert_whole(shell.folder)


@two_cores
def test_workers_end_with_their_command(shell: Shell) -> None:
    command = shell.start(*GRID, *WORKERS)
    try:
        workers = workers_of(command)
        wait_for("main epoch 1/3", command)
        command.kill()
        assert _ended(workers)
        done = finish(command)
    finally:
        command.kill()
    assert "Traceback" not in done.err
    assert_nothing_is_held(shell.folder)


@two_cores
@pytest.mark.slow
def test_what_a_worker_refuses_the_command_refuses(shell: Shell) -> None:
    command = shell.start(*GRID, *WORKERS)
    try:
        workers = workers_of(command)
        wait_for("main epoch 1/3", command)
        write_teacher(shell.folder / "other.pth")
        (shell.folder / "other.pth").replace(shell.folder / "resnet14.pth")
        done = finish(command)
    finally:
        command.kill()
    assert _ended(workers)
    assert "Traceback" not in done.err
    assert [line for line in done.errors if line.startswith("kdtable: ")] == [done.errors[-1]]
    assert "resnet14.pth changed while it was in use: run the command again" in done.errors[-1]
    assert done.code == 2
    assert_nothing_is_held(shell.folder)


@two_cores
@pytest.mark.slow
def test_runs_that_fail_in_workers(shell: Shell) -> None:
    diverging = (*PAIR, "--methods", "vanilla,at", "--set", "weight.at=1e38", "--seeds", "2")
    done = shell.run(*diverging, *WORKERS)
    assert done.code == 1
    assert "Traceback" not in done.err
    for seed in (1, 2):
        assert done.err.count(f"FAILED resnet8 at seed {seed}: the loss became") == 1
        assert f"vanilla seed {seed} main epoch 3/3" in done.err
    assert done.errors[-1].startswith("kdtable: 2 runs failed")
    assert "│ student" in done.out


@pytest.mark.parametrize(
    ("jobs", "parts"),
    {
        "0": ("--jobs", "a number", "auto", "'0'"),
        "-1": ("--jobs", "'-1'"),
        "x": ("--jobs", "'x'"),
        "1.5": ("--jobs", "'1.5'"),
        "": ("--jobs", "''"),
        "100000": ("--jobs 100000", "cores"),
    }.items(),
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_bad_number_of_jobs(jobs: str, parts: tuple[str, ...], more: tuple[str, ...], call: Call, tiny: Path) -> None:
    before = listing(tiny)
    assert_refused(call(*GRID, "--jobs", jobs, *more), *parts)
    assert listing(tiny) == before


@two_cores
def test_one_cohort_needs_no_second_process(call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtable.execution.backends.processes.start", lambda *_: pytest.fail("workers were started"))
    done = call(*PAIR, "--methods", "vanilla,kd", *WORKERS)
    assert done.code == 0, done.err
    assert "cohort 1/1" in done.err


def test_nothing_to_train_starts_no_worker(after_grid: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtable.execution.backends.processes.start", lambda *_: pytest.fail("workers were started"))
    done = call(*ALL, "--seeds", "2", "--jobs", "auto")
    assert done == Done(0, done.out, "")


def test_help_says_what_jobs_are(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(call("run", "--help").out.split())
    assert "Worker processes that share the work: a number, or auto" in text
    assert "about how long it would take" in text
