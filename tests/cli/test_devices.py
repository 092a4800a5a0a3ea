"""One command whose runs several processes train together, on CPUs; what happens when one of these dies."""

import csv
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests.cli.command import (
    SMALL_CRD,
    TEACHER,
    Call,
    Done,
    Shell,
    assert_refused,
    assert_same_numbers,
    finish,
    runs_in,
    wait_for,
    write_images,
    write_teacher,
)
from tests.data.photos import image_folder

DATA = ("--data", "npz:tiny.npz", "--batch-size", "16")
PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "3", *DATA, *TEACHER)
GRID = (*PAIR, "--methods", "kd,crd,mgd", "--seeds", "1", *SMALL_CRD)
ONE = ("--seeds", "1", "--device", "cpu")
TWO = ("--devices", "cpu,cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that commands need, and the grid trained by two processes that torchrun started."""
    folder = tmp_path_factory.mktemp("devices")
    write_images(folder / "tiny.npz", train=100, test=8)
    write_teacher(folder / "resnet14.pth")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = Shell(folder).run(*GRID, "--device", "cpu", "--results", "undisturbed", python=torchrun)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def shell(folder: Path, tmp_path: Path) -> Shell:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return Shell(tmp_path)


def test_it_is_another_run_than_on_one_device(shell: Shell, call: Call) -> None:
    done = call(*PAIR, "--methods", "kd", *ONE, "--results", "undisturbed")
    assert done.code == 0, done.err
    report = call("report", "--results", "undisturbed", "--format", "csv")
    rows = {line["row"] for line in csv.DictReader(report.out.splitlines())}
    assert {"kd", "kd (devices=2)"} <= rows
    assert any(row.startswith("crd (") and "devices=2" in row for row in rows)


def test_torchruns_processes_end_when_there_is_nothing_to_do(
    shell: Shell, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*GRID, "--device", "cpu", "--results", "undisturbed")
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    other = Shell(shell.folder, variables | {"RANK": "1"}).start(*command)
    for name, value in (variables | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    done = call(*command)
    assert done.code == 0, done.err
    assert finish(other).code == 0


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_photographs_are_decoded_by_every_process(shell: Shell, call: Call) -> None:
    """Each has worker processes of its own, where there are cores for them."""
    image_folder(shell.folder / "photos")
    data = ("--data", "imagenet:photos", "--image-size", "16", "--batch-size", "4")
    alone = ("--pairs", "resnet8:resnet8", "--methods", "vanilla", "--seeds", "1")
    done = call("run", *alone, *data, "--epochs", "1", *TWO)
    assert done.code == 0, done.err
    assert {run["status"] for run in runs_in(shell.folder / "results").values()} == {"done"}


def test_a_killed_process_ends_the_command_and_loses_nothing(shell: Shell, call: Call, folder: Path) -> None:
    """What goes on is trained by ``--devices``: it ends where torchrun's processes do."""
    command = shell.start(*GRID, *TWO)
    wait_for("main epoch 1/3", command)
    other = next(p for p in psutil.Process(command.pid).children() if "spawn_main" in " ".join(p.cmdline()))
    os.kill(other.pid, signal.SIGKILL)
    done = finish(command)
    assert done.code == 1, done.err
    assert re.search(
        r"^kdtable: rank \d failed \(process \d+ was killed by SIGKILL .*call again to go on$", done.errors[-1]
    )
    assert "Traceback" not in done.err
    assert_goes_on(call(*GRID, *TWO), shell, folder)


@pytest.mark.slow
def test_a_killed_command_takes_the_others_with_it(shell: Shell, call: Call, folder: Path) -> None:
    command = shell.start(*GRID, *TWO)
    wait_for("main epoch 2/3", command)
    others = psutil.Process(command.pid).children()
    command.kill()
    command.wait()
    _, alive = psutil.wait_procs(others, timeout=60)
    assert alive == []
    assert_goes_on(call(*GRID, *TWO), shell, folder)


@pytest.mark.slow
def test_interrupted(shell: Shell, call: Call, folder: Path) -> None:
    command = shell.start(*GRID, *TWO, own_group=True)
    wait_for("main epoch 1/3", command)
    os.killpg(command.pid, signal.SIGINT)
    done = finish(command)
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    assert_goes_on(call(*GRID, *TWO), shell, folder)


def assert_goes_on(done: Done, shell: Shell, folder: Path) -> None:
    """The same command ends as if nothing had befallen it."""
    assert done.code == 0, done.err
    assert_same_numbers(shell.folder / "results", folder / "undisturbed")
    assert {run["status"] for run in runs_in(shell.folder / "results").values()} == {"done"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*TWO, "--jobs", "2"), "leave out --jobs"),
        ((*TWO, "--device", "cpu"), "leave out --device"),
        ((*TWO, "--sync-batch-norm"), "SyncBatchNorm takes no tensors on a CPU"),
        (("--devices", "cpu,gpu"), "takes numbers of GPUs (0,1) or cpu,cpu, not 'gpu'"),
        (("--devices", "997,998"), "--devices names GPU 997"),
        (("--devices", "0,0"), "names GPU 0 twice"),
        (("--accumulate", "0"), "--accumulate 0"),
        (("--accumulate", "9"), "too small for 1 devices and --accumulate 9"),
        (("--sync-batch-norm",), "needs several --devices"),
    ],
)
def test_refused(tiny: Path, call: Call, options: tuple[str, ...], message: str) -> None:
    assert_refused(call(*GRID, *options), message)
    assert not (tiny / "results").exists()


def test_methods_that_compare_images_are_not_applicable_to_parts(tiny: Path, call: Call) -> None:
    done = call(*PAIR, "--methods", "kd,crd", *ONE, "--accumulate", "2", *SMALL_CRD)
    assert done.code == 0, done.err
    assert {run["row"]: run["status"] for run in runs_in(tiny / "results").values()} == {
        "kd": "done",
        "crd": "n/a",
    }
    assert "because crd compares the images of a whole batch, which --accumulate takes apart" in " ".join(
        done.out.split()
    )
