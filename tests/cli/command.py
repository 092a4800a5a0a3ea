"""The console command as a user calls it, and what it leaves on disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import sqlalchemy as sa
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdtable import models
from kdtable.store import RunRecord, Store
from kdtable.store.records import measured

#: Far above what any command here takes, so that a hang ends as a failure.
SECONDS = 300

#: Of the user's own shell: they would change what is asked, or how it is printed.
FOREIGN = (
    "KDTABLE_RESULTS",
    "KDTABLE_TEACHERS",
    "KDTABLE_DATA",
    "KDTABLE_STORE",
    "KDTABLE_LEASE",
    "COLUMNS",
    "FORCE_COLOR",
    "PY_COLORS",
    "GITHUB_ACTIONS",
    *("WANDB_API_KEY", "WANDB_DIR", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"),
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


#: Options that may be repeated.
REPEATABLE = ("--plugin", "--set", "--teacher", "--start", "--input-mean", "--input-std", "--cluster")


def last_of_each(words: Sequence[str]) -> list[str]:
    """The words of a command in which a later option replaces an earlier one, so that tests can vary a good command."""
    found: list[list[str]] = []
    for number, word in enumerate(words):
        if word.startswith("--") or not number or not found:
            found.append([word])
        else:
            found[-1].append(word)
    last = {group[0]: number for number, group in enumerate(found) if len(group) > 1}
    kept = (g for n, g in enumerate(found) if g[0] in REPEATABLE or len(g) == 1 or last[g[0]] == n)
    return [word for group in kept for word in group]


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
    variables: Mapping[str, str] = field(default_factory=dict)

    def run(self, *args: str, python: Sequence[str] = ()) -> Done:
        done = subprocess.run(
            self._words(args, python),
            cwd=self.folder,
            env=environment() | self.variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, own_group: bool = False) -> subprocess.Popen[str]:
        """Start a command, on request as a process group of its own, as a terminal's shell does."""
        return subprocess.Popen(
            self._words(args, ()),
            cwd=self.folder,
            env=environment() | self.variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            process_group=0 if own_group else None,
        )

    @staticmethod
    def _words(args: Sequence[str], python: Sequence[str]) -> list[str]:
        return [sys.executable, *python, "-m", "kdtable", *last_of_each(args)]


def environment() -> dict[str, str]:
    """The variables of a command that a test starts."""
    kept = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    return kept | PROXIES | {"PYTHONIOENCODING": "utf-8"}


@contextmanager
def interruptible() -> Iterator[None]:
    """A command that is started here hears SIGINT, even where the tests themselves run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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


def write_teacher(path: Path, network: str = "resnet14", classes: int = 4) -> None:
    """A checkpoint of an untrained network, as another program writes it."""
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": models.build(network, classes).state_dict()}, path)


# --- what commands leave -----------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their content, folders with ``None``."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def query(results: Path, sql: str, url: str | None = None) -> list[dict[str, object]]:
    with closing(Store(results, url, create=False)) as store, store.database.read() as db:
        return [dict(row) for row in db.execute(sa.text(sql)).mappings()]


def runs_in(results: Path, url: str | None = None) -> dict[str, dict[str, object]]:
    """The runs of a store by id, each as one flat mapping."""
    with closing(Store(results, url, create=False)) as store:
        return {run.id: _flat(run) for run in store.runs()}


def _flat(run: RunRecord) -> dict[str, object]:
    whole = asdict(run)
    about = whole | (whole.pop("result") or {}) | {"identity": run.protocol.identity, "last_epoch": run.last_epoch}
    chosen = {
        f"{which}_{name}": value
        for which in ("last", "best")
        for name, value in (run.metrics_of(which) or {"top1": None}).items()
    }
    branches = [value for name, value in chosen.items() if name.startswith("last_branch")]
    return about | chosen | {"branches": branches}


def epochs_in(results: Path, url: str | None = None) -> list[dict[str, object]]:
    """The epochs of a store, without what a clock or the cohort's size measured."""
    with closing(Store(results, url, create=False)) as store:
        ids = sorted(run.id for run in store.runs())
        return [{"id": run_id, **asdict(epoch)} for run_id in ids for epoch in measured(store.history(run_id))]


def students_in(results: Path) -> dict[str, dict[str, Tensor]]:
    """Trained weights by run and by key."""
    files = sorted((results / "runs").glob("*/student.safetensors"))
    return {file.parent.name: load_file(file) for file in files}


def assert_same_numbers(results: Path, others: Path, url: str | None = None) -> None:
    """Both folders hold the same runs: equal epochs, and weights equal to the bit; ``url`` is the first one's store."""
    assert epochs_in(results, url) == epochs_in(others)
    ours, theirs = students_in(results), students_in(others)
    assert ours.keys() == theirs.keys() == runs_in(results, url).keys()
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
