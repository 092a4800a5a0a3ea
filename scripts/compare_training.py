"""Training the cases of a commit: its files, its commands in processes of their own, and its kept results."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from compare_cases import CASES, Case, Step, write_pictures
from compare_readers import Unreadable, read_store

ROOT = Path(__file__).resolve().parents[1]

#: Variables that would change what kdtable does.
_FOREIGN = ("KDTABLE_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "PYTHON", "COLUMNS", "FORCE_COLOR")

#: In the folder of a trained case: how long it took, and notes.
ABOUT = "about.json"
_LOG = "log.txt"
_TOLD = 15  # lines of a failed command's output


class BadInput(Exception):
    """Something that the user asked for is not there."""


class Failed(Exception):
    """A case could not be trained."""


# --- code --------------------------------------------------------------------------------------------------------


class Code:
    """The files of a version of kdtable.

    Attributes:
        name: what messages call it.
        commit: its hash; ``None`` where the files may differ from every commit.

    Args:
        checkout: gives the folder of the files.
    """

    def __init__(self, name: str, commit: str | None, checkout: Callable[[], Path]) -> None:
        self.name = name
        self.commit = commit
        self._checkout = checkout

    @cached_property
    def folder(self) -> Path:
        """Where its files are.

        Raises:
            Failed: another version is imported from there.
        """
        folder = self._checkout()
        command = [sys.executable, "-c", "import kdtable; print(kdtable.__file__)"]
        with tempfile.TemporaryDirectory() as elsewhere:
            done = subprocess.run(
                command, cwd=elsewhere, env=environment(folder), capture_output=True, text=True, check=False
            )
        if done.returncode or not Path(done.stdout.strip()).resolve().is_relative_to(folder.resolve()):
            raise Failed(f"kdtable is not imported from {folder}: {done.stdout}{done.stderr}")
        return folder


def other_code(text: str, stack: ExitStack) -> Code:
    """The version that the user names: a commit, or a folder with a checkout. What it needs is removed with ``stack``.

    Raises:
        BadInput: there is no such version.
    """
    folder = Path(text)
    if (folder / "kdtable" / "__init__.py").is_file():
        return Code(text, _clean_commit(folder), folder.resolve)
    commit = _git(ROOT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
    if not commit:
        raise BadInput(f"'{text}' is neither a commit of this repository nor a folder with a checkout of kdtable")
    return Code(commit[:12], commit, lambda: stack.enter_context(_worktree(commit)))


def _clean_commit(folder: Path) -> str | None:
    """The commit that a checkout is of; ``None`` if it was changed, or is not known."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != folder.resolve() or _git(folder, "status", "--porcelain"):
        return None
    return _git(folder, "rev-parse", "HEAD") or None


def _git(folder: Path, *words: str) -> str:
    """What a git command prints; nothing if it fails."""
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """A worktree of a commit, for as long as the block lasts."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="compare-commits-") as parent:
        folder = Path(parent) / "checkout"
        try:
            added = [*git, "add", "--quiet", "--detach", str(folder), commit]
            done = subprocess.run(added, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Failed(f"no worktree of {commit} can be made: {done.stderr.strip()}")
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=False, capture_output=True)


# --- commands ----------------------------------------------------------------------------------------------------


def environment(checkout: Path) -> dict[str, str]:
    """Variables of a command that imports kdtable from a checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept | {"PYTHONPATH": str(checkout), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}


@contextmanager
def _started(words: Sequence[str], code: Code, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of kdtable in a folder, in a process group of its own, which is killed at the end of the block."""
    with (folder / _LOG).open("ab") as log:
        log.write(f"$ kdtable {' '.join(words)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "kdtable", *words],
            cwd=folder,
            env=environment(code.folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _call(words: Sequence[str], code: Code, folder: Path) -> None:
    with _started(words, code, folder) as process:
        returned = process.wait()
    if returned:
        lines = (folder / _LOG).read_text(errors="replace").splitlines()[-_TOLD:]
        raise Failed(f"a command of {code.name} returned {returned}:\n" + "\n".join(lines))


def _kill(words: Sequence[str], after: int, results: Path, code: Code, folder: Path) -> int:
    """Start a command, and kill it and its children when so many epochs are finished; how many were."""
    with _started(words, code, folder) as process:
        while epochs_in(results) < after:
            if process.poll() is not None:
                raise Failed(f"{results.name}: it ended before {after} epochs were finished, too early to be killed")
            time.sleep(0.1)
    return epochs_in(results)


def epochs_in(results: Path) -> int:
    """How many epochs a results folder holds, which may be in use, or not be there yet."""
    with suppress(Unreadable):
        return sum(len(run.epochs) for run in read_store(results).values())
    return 0


# --- cases -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One of the two versions, and where its results are.

    Attributes:
        code: the version.
        folder: of its results, a folder for each case.
        shared: folder of shared data.
        kept: whether results that are there already count, as those of a commit do.
        disturbed: whether commands are killed where a case says so.
    """

    code: Code
    folder: Path
    shared: Path
    kept: bool
    disturbed: bool

    def trained(self, name: str, tell: Callable[[str], None]) -> Path:
        """The folder of a case's results, which are trained if need be.

        Raises:
            Failed: they cannot be.
        """
        place = self._place(name)
        if self.kept and (place / ABOUT).is_file():
            tell(f"{name}: kept results of {self.code.name}")
            return place
        tell(f"{name}: training at {self.code.name}")
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=self.folder))
        try:
            self._train(CASES[name], unfinished)
            with suppress(OSError):  # another process has kept the same meanwhile
                unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return place

    def _place(self, name: str) -> Path:
        return self.folder / (f"{name}-{_digest(CASES[name], self.shared)}" if self.kept else name)

    def _train(self, case: Case, folder: Path) -> None:
        if case.taught:
            self._take_teachers(folder)
        if case.pictures:
            write_pictures(folder / "pictures")
        started, notes = time.monotonic(), []
        for step in case.steps:
            notes += self._take(step, folder)
        about = {"code": self.code.name, "seconds": time.monotonic() - started, "notes": notes}
        (folder / ABOUT).write_text(json.dumps(about, indent=2))

    def _take_teachers(self, folder: Path) -> None:
        """Copy the teachers, beside which some cases write."""
        teachers = self._place("teachers") / "teachers"
        if not teachers.is_dir():
            raise Failed(f"there are no teachers of {self.code.name}, which could not be trained")
        shutil.copytree(teachers, folder / "teachers")

    def _take(self, step: Step, folder: Path) -> list[str]:
        """Run a step's command to its end; notes about what befell it."""
        words, results = step.filled(self.shared), folder / "results" / step.results
        kills = step.kills if self.disturbed else ()
        killed = [_kill(words, after, results, self.code, folder) for after in kills]
        _call(words, self.code, folder)
        if not killed:
            return []
        if killed[-1] >= (all_of_them := epochs_in(results)):
            raise Failed(f"{step.results}: it was killed too late, when all {all_of_them} epochs were finished")
        return [f"{step.results}: killed after {' and '.join(map(str, killed))} of {all_of_them} epochs"]


def about(folder: Path) -> dict[str, Any]:
    """What is kept beside the results of a case."""
    content: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    return content


def _digest(case: Case, shared: Path) -> str:
    """What else than the commit a case's results depend on: its commands, its files, the libraries, the processor."""
    files = {name: hashlib.sha256((shared / name).read_bytes()).hexdigest() for name in case.shared}
    others = [torch.__version__, numpy.__version__, sys.version, torch.backends.cpu.get_cpu_capability()]
    steps = [*(CASES["teachers"].steps if case.taught else ()), *case.steps]
    commands = [(step.words, step.results) for step in steps]
    text = json.dumps([commands, case.pictures, files, others], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
