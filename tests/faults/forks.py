"""Commands as forks of a process that has imported torch already: one starts in a moment instead of in three seconds.

A fork is a process of its own, with its own memory, threads and files, so that it can be killed like any other. Here
are the process that forks (``python -m tests.faults.forks``), and the side of the tests, :class:`Forks`.
"""

import gc
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.cli.command import SECONDS, SMALL, TEACHER, Done, environment, last_of_each, write_images, write_teacher
from tests.faults import trail

ROOT = Path(__file__).parents[2]
READY = "ready\n"
GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@dataclass(frozen=True)
class Command:
    """A command that was started; its output goes to files in ``notes``."""

    pid: int
    notes: Path
    forks: "Forks"

    @property
    def err(self) -> str:
        """What it wrote to stderr by now."""
        return (self.notes / "err").read_text(encoding="utf-8")

    @property
    def trail(self) -> str:
        """What it was at when it ended."""
        return trail.read(self.notes / "trail")

    @property
    def trains(self) -> bool:
        """Whether it is in an epoch of a cohort."""
        file = self.notes / "trail"
        return file.exists() and trail.read(file).startswith(trail.TRAINING)

    def comes_to_train(self) -> bool:
        """Wait until it trains; whether it has not ended before that."""
        while not self.trains:
            if self.ended:
                return False
            time.sleep(0.002)
        return True

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # it may have been asked how it ended already
            self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_for(self, text: str) -> str:
        """Wait for a line on stderr that has ``text``; what was written up to that line."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            ended = self.ended
            before, found, after = self.err.partition(text)
            line, end, _ = after.partition("\n")
            if found and end:
                return before + found + line + end
            assert not ended, f"the command ended without '{text}':\n{self.err}"
            time.sleep(0.005)
        raise AssertionError(f"the command does not say '{text}':\n{self.err}")

    def ends_within(self, seconds: float) -> bool:
        """Give it so much time; whether it has ended by then."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended:
            time.sleep(0.002)
        return self.ended

    @property
    def ended(self) -> bool:
        return psutil.Process(self.pid).status() in GONE  # a zombie, until `finish` asks how it ended

    def finish(self) -> Done:
        """Wait for its end."""
        hangs = not self.ends_within(SECONDS)
        self.kill()
        status = self.forks.ask({"wait": self.pid})
        assert not hangs, self.err
        return Done(status, (self.notes / "out").read_text(encoding="utf-8"), self.err)


@dataclass
class Forks:
    """Starts commands."""

    process: "subprocess.Popen[str]"
    notes: Path
    started: int = 0

    def start(self, folder: Path, *args: str, fault: str | None = None, **variables: str) -> Command:
        """Start ``kdtable ARGS`` in ``folder``; ``fault`` names what is to happen to it, of `POINTS` and `TROUBLES`."""
        self.started += 1
        notes = self.notes / str(self.started)
        notes.mkdir()
        for name in ("out", "err"):  # it may be asked for them before it opens them
            (notes / name).touch()
        order = {"folder": str(folder), "args": args, "notes": str(notes), "fault": fault, "variables": variables}
        return Command(self.ask(order), notes, self)

    def run(self, folder: Path, *args: str, fault: str | None = None, **variables: str) -> Done:
        return self.start(folder, *args, fault=fault, **variables).finish()

    def ask(self, order: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@contextmanager
def open_forks() -> Iterator[Forks]:
    words = (sys.executable, "-m", "tests.faults.forks")
    pipe = subprocess.PIPE
    with TemporaryDirectory(prefix="kdtable-forks-") as notes:
        process = subprocess.Popen(words, cwd=ROOT, env=environment(), text=True, stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == READY
            yield Forks(process, Path(notes))
        finally:
            process.stdin.close()
            process.wait(SECONDS)


# --- the process that forks --------------------------------------------------------------------------------------


def _serve() -> None:
    """Answer each order on stdin by a line on stdout: a pid, or how a command has ended."""
    print(READY, end="", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _become_command(**order)


def _become_command(folder: str, args: list[str], notes: str, fault: str | None, variables: dict[str, str]) -> None:
    from tests.faults.points import POINTS
    from tests.faults.troubles import TROUBLES

    os.chdir(folder)
    os.environ.update(variables)
    for number, name in enumerate((os.devnull, f"{notes}/out", f"{notes}/err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    trail.leave(Path(notes, "trail"))
    if fault is not None:
        (POINTS | TROUBLES)[fault]()
    code = _call(*args)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)  # the interpreter's own end would touch, and so copy, all memory that is shared with the parent


def _call(*args: str) -> int:
    """Call a command in this process; its exit code."""
    from kdtable.cli import main

    sys.argv = ["kdtable", *last_of_each(args)]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    raise AssertionError("a command ends by SystemExit")


def _warm_up(folder: Path) -> None:
    """Import and prepare what commands need, by calling one, which leaves no thread: with threads none may fork."""
    write_images(folder / "tiny.npz", train=16, test=4)
    write_teacher(folder / "resnet14.pth")
    os.chdir(folder)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as told:
        code = _call("run", "--pairs", "resnet14:resnet8", "--methods", "kd", "--epochs", "1", *SMALL, *TEACHER)
    assert code == 0, told.getvalue()
    assert len(psutil.Process().threads()) == 1
    gc.freeze()  # or each fork copies what the collector looks at


if __name__ == "__main__":
    with TemporaryDirectory(prefix="kdtable-forks-") as name:
        _warm_up(Path(name))
        os.chdir(ROOT)
    _serve()
    os._exit(0)
