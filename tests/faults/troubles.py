"""What can befall a command from outside: a full disk, a limit on files, no permission, a clock that jumps, no memory.

Each is arranged in the command's own fork. What happens to a disk happens to the one that its folder lies on.
"""

import ctypes
import datetime
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from kdtable.store import rows
from tests.faults.points import SAVE, SAVE_STUDENT, Arrange, failing_once, following
from tests.faults.trail import replaced

FILLER: Final = "filler"
#: Bytes that a file may have: more than a resnet8's checkpoint has, fewer than a resnet20's.
LARGEST_FILE: Final = 1_000_000


def fill() -> None:
    """Leave no room on the disk of the current folder."""
    with open(FILLER, "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def full_before(place: str, wanted: Callable[..., bool] = lambda *_, **__: True) -> Arrange:
    """Fill the disk when the function is called with arguments that are ``wanted``."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if wanted(*args):
                fill()
            return original(*args, **options)

        return call

    return lambda: replaced(place, make)


def limited_files() -> None:
    """A file grows no further than so; what is written beyond that is refused as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))


def unprivileged() -> None:
    """Let permissions hold for this process even if it is root's: give up the right to override them."""
    if os.geteuid() != 0 or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for capabilities from 32 on
    assert libc.capget(header, sets) == 0
    for which in (0, 1):
        sets[which] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


def no_log() -> None:
    """Nothing can be written to stdout and stderr, as when the disk is full that they go to."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)


def limited_memory(megabytes: int) -> Arrange:
    """So much memory can be had besides what the process has by now."""

    def arrange() -> None:
        status = Path("/proc/self/status").read_text().splitlines()
        (held,) = (int(line.split()[1]) << 10 for line in status if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + (megabytes << 20),) * 2)

    return arrange


class Backwards(datetime.datetime):
    """A clock that is a day earlier each time it is read."""

    _days = 0

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Backwards":
        cls._days += 1
        return super().now(tz) - datetime.timedelta(days=cls._days)


def backwards() -> None:
    replaced("time:time", lambda original: lambda: original() - 86400 * Backwards._days)
    setattr(rows, "datetime", Backwards)  # noqa: B010  # the module has it, and gives it to nobody


def too_large() -> None:
    """Let memory run out whenever the student of KD makes a step."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(member: Any, *args: Any) -> Any:
            if type(member.method).__name__ == "KD":
                raise torch.OutOfMemoryError("no room for 1 GiB")
            return original(member, *args)

        return step

    replaced("kdtable.training.member:Member.step", make)


#: What befalls a grid on a small disk.
DISK: dict[str, Arrange] = {
    "full when the grid is planned": full_before("kdtable.store:Store.plan"),
    "full when runs are claimed": full_before("kdtable.store:Worker.claim"),
    "full when a checkpoint is written": full_before(SAVE, lambda path, **_: path.name.startswith("checkpoint.pt")),
    "full when an epoch is committed": following(SAVE, full_before("kdtable.store.claims:Held.record")),
    "full when student.safetensors is written": full_before(SAVE_STUDENT),
    "full when a traceback is written": failing_once(full_before("kdtable.execution.recorder:Recorder._keep_trace")),
}
TROUBLES: dict[str, Arrange] = DISK | {
    "full when a view is kept": full_before("os:pwrite"),
    "full when a student is copied": full_before("kdtable.store.maintenance.copying:_copy_file"),
    "files are limited": limited_files,
    "no log can be written": no_log,
    "unprivileged": unprivileged,
    "the clock goes backwards": backwards,
    "a student that is too large": too_large,
    "memory for no student": limited_memory(300),
    "memory for few students": limited_memory(800),
}
