"""A small grid on the digits that is killed and resumed ends as one that was not disturbed."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

from kdtable.doctor.check import Failure
from kdtable.doctor.commands import finished, grid
from kdtable.doctor.parity import error_of
from kdtable.doctor.rows import PAIRS
from kdtable.store.files import CHECKPOINT, STUDENT

METHODS: Final = ("vanilla", "kd", "crd")
#: Most of the training images are held out, so that an epoch is short.
OPTIONS: Final = (
    "--pairs",
    PAIRS[0],
    "--methods",
    ",".join(METHODS),
    "--epochs",
    2,
    "--set",
    "negatives=256",
    "--validation",
    1100,
)
#: Seconds to wait for the first checkpoints.
PATIENCE: Final = 240.0


def resuming(device: torch.device, folder: Path) -> str:
    """Kill a command after its first epoch, call it again, and compare the students' weights."""
    options = (*OPTIONS, "--device", device)
    _kill(grid(folder, "resumed", *options), folder / "resumed")
    for results in ("resumed", "undisturbed"):
        finished(grid(folder, results, *options))
    files = sorted((folder / "resumed").glob(f"runs/*/{STUDENT}"))
    if len(files) != len(METHODS):
        raise Failure(f"{len(files)} of {len(METHODS)} runs left a student")
    worst = max(_gap(file, folder / "undisturbed" / file.relative_to(folder / "resumed")) for file in files)
    if worst and device.type == "cpu":
        raise Failure(f"a resumed student differs from an undisturbed one by {worst:.1e}")
    how = f"differ from undisturbed ones by {worst:.0e}" if worst else "end in the same weights as undisturbed ones"
    return f"{len(files)} killed and resumed runs {how}"


def _kill(arguments: list[str], results: Path) -> None:
    """Kill the command once every run has a checkpoint."""
    command = subprocess.Popen(
        [sys.executable, "-m", "kdtable", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + PATIENCE
    try:
        while len(list(results.glob(f"runs/*/{CHECKPOINT}"))) < len(METHODS):
            if command.poll() is not None:
                raise Failure(f"the command ended with exit code {command.returncode} before it was killed")
            if time.monotonic() > end:
                raise Failure(f"no epoch ended within {PATIENCE:.0f} s")
            time.sleep(0.02)
    finally:
        command.kill()
        command.wait()


def _gap(one: Path, other: Path) -> float:
    """The relative difference of two students' weights."""
    a, b = load_file(one), load_file(other)
    if a.keys() != b.keys():
        raise Failure("a resumed student has other tensors than an undisturbed one")
    left, right = (torch.cat([tensors[key].double().flatten() for key in sorted(a)]) for tensors in (a, b))
    return 0.0 if torch.equal(left, right) else error_of(left, right)
