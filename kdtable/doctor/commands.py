"""``kdtable run`` as a process of its own, on the digits, with an untrained teacher."""

import subprocess
import sys
from pathlib import Path

import torch

from kdtable.doctor.check import Failure
from kdtable.training.build import build_teacher


def grid(folder: Path, results: str, *options: object) -> list[str]:
    """The arguments of a grid whose store is ``results`` in ``folder``; writes its teacher, a resnet14, if missing."""
    teacher = folder / "resnet14.pth"
    if not teacher.exists():
        torch.save({"model": build_teacher("resnet14", 10, (0.5,) * 3, (0.5,) * 3).state_dict()}, teacher)
    where = ("--results", folder / results, "--teachers-dir", folder, "--data-root", folder)
    what = ("--data", "digits", "--seeds", 1, "--teacher", f"resnet14={teacher}")
    return ["run", *map(str, (*what, *where, *options))]


def finished(arguments: list[str], before: str = "") -> str:
    """Run a command to its end, after some Python of ours; return what it said.

    Raises:
        Failure: it failed.
    """
    code = f"{before}\nfrom kdtable.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"the command ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr
