"""The console command as a user calls it, and what it leaves on disk."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from kdtable import models
from kdtable.teachers.files import save_weights

#: Far above what any command here takes, so that a hang ends as a failure.
SECONDS = 300

#: Of the user's own shell: they would change what is asked, or how it is printed.
FOREIGN = (
    "KDTABLE_RESULTS",
    "KDTABLE_TEACHERS",
    "KDTABLE_DATA",
    "COLUMNS",
    "FORCE_COLOR",
    "PY_COLORS",
    "GITHUB_ACTIONS",
)

#: Nothing listens there: a request to any host but loopback fails at once.
DEAD_PROXY = "http://127.0.0.1:9"
PROXIES = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), DEAD_PROXY),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
}

#: Options that make runs on the tiny set possible and quick.
SMALL = ("--data", "npz:tiny.npz", "--batch-size", "16", "--device", "cpu")
SMALL_CRD = ("--set", "negatives=16", "--set", "dim=8")
TEACHER = ("--teacher", "resnet14=resnet14.pth")


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return self.err.splitlines()


#: Calls the command inside this process, in the test's folder.
Call = Callable[..., Done]


@dataclass(frozen=True)
class Shell:
    """Runs ``python -m kdtable`` in a folder, as processes of their own."""

    folder: Path

    def run(self, *args: str, python: Sequence[str] = ()) -> Done:
        done = subprocess.run(
            self._words(args, python),
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._words(args, ()),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    @staticmethod
    def _words(args: Sequence[str], python: Sequence[str]) -> list[str]:
        return [sys.executable, *python, "-m", "kdtable", *args]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    return kept | PROXIES | {"PYTHONIOENCODING": "utf-8"}


def wait_for(text: str, process: subprocess.Popen[str]) -> str:
    """Read a process's stderr up to the first line that has ``text``; what was read."""
    stream: IO[str] | None = process.stderr
    assert stream is not None
    read = ""
    for line in stream:
        read += line
        if text in line:
            return read
    raise AssertionError(f"the command ended without '{text}':\n{read}")


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for a started command; its output was thrown away."""
    try:
        _, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return Done(process.returncode, "", err)


# --- what commands are given -------------------------------------------------------------------------------------


def write_images(path: Path, changes: Mapping[str, Any] | None = None, *, train: int = 48, test: int = 24) -> None:
    """An npz set of four classes that brightness tells apart; ``changes`` replace its arrays, ``None`` drops one."""
    random = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 4
        images = random.integers(0, 100, (count, 3, 32, 32)) + 38 * labels[:, None, None, None]
        return images.astype(np.uint8), labels.astype(np.uint8)

    arrays: dict[str, Any] = {"num_classes": np.array(4)}
    arrays["train_images"], arrays["train_labels"] = part(train)
    arrays["test_images"], arrays["test_labels"] = part(test)
    arrays |= changes or {}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def write_teacher(path: Path, network: str = "resnet14", classes: int = 4, data: str = "tiny") -> None:
    """A checkpoint of an untrained network."""
    torch.manual_seed(0)
    built = models.build(network, classes, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    save_weights(
        path, built.state_dict(), network=network, num_classes=classes, mean=None, std=None, run=None, data=data
    )


# --- what commands leave -----------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their content, folders with ``None``."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def query(results: Path, sql: str) -> list[dict[str, object]]:
    database = sqlite3.connect(results / "kdtable.sqlite")
    database.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in database.execute(sql)]
    finally:
        database.close()


def runs_in(results: Path) -> dict[str, dict[str, object]]:
    """The runs of a store by id."""
    return {str(run["id"]): run for run in query(results, "select * from runs order by key")}


def epochs_in(results: Path) -> list[dict[str, object]]:
    """The epochs of a store, without what a clock or company measured."""
    columns = "id, stage, epoch, lr, train_loss, train_top1, epochs.test_top1, epochs.test_top5"
    return query(results, f"select {columns} from epochs join runs on runs.key = epochs.run order by id, stage, epoch")


def students_in(results: Path) -> dict[str, dict[str, Tensor]]:
    """Trained weights by run and by key."""
    files = sorted((results / "runs").glob("*/student.pt"))
    return {file.parent.name: torch.load(file, weights_only=True)["student"] for file in files}


def assert_same_numbers(results: Path, others: Path) -> None:
    """Both folders hold the same runs: equal epochs, and weights equal to the bit."""
    assert epochs_in(results) == epochs_in(others)
    ours, theirs = students_in(results), students_in(others)
    assert ours.keys() == theirs.keys() == runs_in(results).keys()
    for run, weights in ours.items():
        assert weights.keys() == theirs[run].keys()
        different = [key for key, value in weights.items() if not torch.equal(value, theirs[run][key])]
        assert not different, f"{run}: {different}"


def assert_refused(done: Done, *parts: str) -> None:
    """One sentence on stderr that has every one of ``parts``, and exit code 2."""
    assert "Traceback" not in done.err
    assert len(done.errors) == 1, done.err
    assert done.err.startswith("kdtable: ")
    missing = [part for part in parts if part not in done.err]
    assert not missing, done.err
    assert done.code == 2
    assert done.out == ""
