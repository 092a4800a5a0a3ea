"""What a command is at, written as it goes into memory that outlives it, so that it can be killed without a word."""

import mmap
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

SIZE: Final = 4096
TRAINING: Final = "training "

Describe = Callable[..., str]
Function = Callable[..., Any]


def _epoch(cohort: Any, _pool: object, stage: str, epoch: int, members: list[Any]) -> str:
    runs = [cohort.sink._runs[member.run_id] for member in members]
    return f"{TRAINING}{stage} epoch {epoch} of {', '.join(run.row for run in runs)} seed {runs[0].seed}"


def _run(recorder: Any, member: Any, *_: object) -> str:
    run = recorder._runs[member.run_id]
    return f"{run.row} seed {run.seed}"


#: Functions of the main thread that say something about where it is, and what they say; outer ones come first.
LANDMARKS: Final[dict[str, Describe]] = {
    "kdtable.data:load": lambda *_: "reading data",
    "kdtable.store:Store.plan": lambda *_: "planning",
    "kdtable.store:Worker.claim": lambda *_: "claiming",
    "kdtable.execution.train_cohort:load_teacher": lambda *_: "loading the teacher",
    "kdtable.execution.train_cohort:build_member": lambda *_: "building a member",
    "kdtable.execution.recorder:Recorder.resume": lambda *args: f"resuming {_run(*args)}",
    "kdtable.training.cohort:Cohort._epoch": _epoch,
    "kdtable.execution.recorder:Recorder.epoch_done": lambda *args: f"keeping it of {_run(*args)}",
    "kdtable.checkpoints.checkpoint:save": lambda path, *_: f"writing {path.name.partition('.pt')[0]}.pt",
    "kdtable.store:Worker.release": lambda *_: "releasing claims",
    "kdtable.cli.report:print_planned": lambda *_: "printing the table",
    "sqlalchemy.engine.default:DefaultDialect.do_commit": lambda *_: "committing",
}


def replaced(place: str, make: Callable[[Function], Function]) -> None:
    """Put ``make(original)`` in the place of a function, which is named as ``module:Class.function``."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = resolve_name(f"{module}:{'.'.join(owners)}")
    original = getattr(owner, name)
    setattr(owner, name, wraps(original)(make(original)))


def leave(file: Path) -> None:
    """From now on write into ``file`` which landmarks the main thread is inside of."""
    file.write_bytes(bytes(SIZE))
    with file.open("r+b") as opened:
        memory = mmap.mmap(opened.fileno(), SIZE)
    inside: list[str] = []
    main = threading.get_ident()

    def write() -> None:
        memory[:] = ": ".join(inside).encode().ljust(SIZE, b"\0")

    def following(describe: Describe) -> Callable[[Function], Function]:
        def make(original: Function) -> Function:
            def call(*args: Any, **options: Any) -> Any:
                if threading.get_ident() != main:
                    return original(*args, **options)
                inside.append(describe(*args))
                write()
                try:
                    return original(*args, **options)
                finally:
                    inside.pop()
                    write()

            return call

        return make

    for place, describe in LANDMARKS.items():
        replaced(place, following(describe))


def read(file: Path) -> str:
    """Where a command was when it ended."""
    return file.read_bytes().rstrip(b"\0").decode() or "starting or ending"
