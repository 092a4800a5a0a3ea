"""Detectors that two processes train together, on CPUs."""

import os
import signal
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import torch

from kdtable.data.spec import BUILT_IN
from kdtable.store import Store
from kdtable.training.build import build_student
from tests.cli.command import Shell, assert_same_numbers, finish, runs_in, wait_for
from tests.detection.test_commands import write_shapes

ROWS = ("vanilla", "kd", "mgd")
RUN = (
    *("run", "--data", "coco:shapes", "--pairs", "retinanet_w16:retinanet_w8", "--methods", ",".join(ROWS)),
    *("--seeds", "1", "--epochs", "2", "--set", "sweep_images=8", "--teacher", "retinanet_w16=teacher.pth"),
)
TWO = ("--devices", "cpu,cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose last test batch has a single image, none for the second process; an untrained teacher; the grid."""
    folder = tmp_path_factory.mktemp("detectors")
    write_shapes(folder / "shapes", train=12, test=17)
    torch.save(build_student("retinanet_w16", BUILT_IN["shapes"], 5).state_dict(), folder / "teacher.pth")
    done = Shell(folder).run(*RUN, *TWO)
    assert done.code == 0, done.err
    return folder


@pytest.mark.slow
def test_two_processes_compute_what_two_micro_batches_do(folder: Path) -> None:
    """In both, a term is the mean over shards of what torchvision makes of each shard alone."""
    done = Shell(folder).run(*RUN, "--device", "cpu", "--accumulate", "2", "--results", "other")
    assert done.code == 0, done.err
    ours = numbers(folder / "results")
    assert {row for row, _, _ in ours} == set(ROWS)
    assert numbers(folder / "other") == pytest.approx(ours, rel=1e-4)
    assert {run["status"] for run in runs_in(folder / "results").values()} == {"done"}


def numbers(results: Path) -> dict[tuple[str, int, str], float]:
    """The losses and the metrics of every epoch."""
    with closing(Store(results, create=False)) as store:
        return {
            (run.row, epoch.epoch, name): value
            for run in store.runs()
            for epoch in store.history(run.id)
            for name, value in {**epoch.terms, **epoch.metrics}.items()
        }


@pytest.mark.slow
def test_a_killed_process_loses_nothing(folder: Path) -> None:
    again = (*RUN, *TWO, "--results", "again")
    command = Shell(folder).start(*again)
    wait_for("main epoch 1/2", command)
    other = next(p for p in psutil.Process(command.pid).children() if "spawn_main" in " ".join(p.cmdline()))
    os.kill(other.pid, signal.SIGKILL)
    done = finish(command)
    assert (done.code, "Traceback" in done.err) == (1, False)
    assert "call again to go on" in done.errors[-1]
    assert Shell(folder).run(*again).code == 0
    assert_same_numbers(folder / "again", folder / "results")
