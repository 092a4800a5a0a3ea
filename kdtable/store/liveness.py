"""Whether a process that trains is still alive: seen directly on this machine, by its silence elsewhere."""

import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final
from uuid import getnode

from kdtable.errors import BadRequest

#: Seconds of silence after which a process counts as dead. Its beats come in a twelfth of that.
LEASE: Final = 60.0
BEATS_PER_LEASE: Final = 12

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, named so that no other one is taken for it.

    Attributes:
        host: the machine's name, for people.
        machine: its boot and the namespace of its process ids; equal where a pid means the same process.
        pid: process id.
        started: when it began, as its system writes it: a later process of the same pid has another one.
    """

    host: str
    machine: str
    pid: int
    started: str

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended; never known of another machine's."""
        if self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's, and alive
        state, started = _look_up(self.pid)
        # A zombie has ended, and only waits for its parent to notice. What cannot be looked up is left to its beats.
        return state in ("Z", "X") or (bool(started) and started != self.started)


@lru_cache
def own_process(pid: int) -> Process:
    """This process, of which ``pid`` is the id (asked for, since a fork has another one)."""
    return Process(socket.gethostname(), _machine(), pid, _look_up(pid)[1])


@lru_cache
def _machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:  # no Linux: one space of process ids per machine
        return f"{socket.gethostname()} {getnode():x}"


def _look_up(pid: int) -> tuple[str, str]:
    """State and start of a process; empty where they cannot be had."""
    if not (_PROC / "self" / "stat").exists():
        return _ask_system(pid)
    try:
        # The command's name may hold anything, brackets too; the fields after the last one are counted.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]  # ticks since the machine's start, which no change of the clock moves


def _ask_system(pid: int) -> tuple[str, str]:
    """:func:`_look_up` where there is no ``/proc``."""
    import psutil

    try:
        process = psutil.Process(pid)
        return "Z" if process.status() == psutil.STATUS_ZOMBIE else "", str(process.create_time())
    except psutil.Error:
        return "", ""


def lease() -> float:
    """Seconds of silence that make a process count as dead: ``KDTABLE_LEASE``, by default 60.

    It must be the same for all processes that share a store.

    Raises:
        BadRequest: the variable is no number above zero.
    """
    text = os.environ.get("KDTABLE_LEASE") or str(LEASE)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BadRequest(f"KDTABLE_LEASE is a number of seconds above zero, not '{text}'")
    return seconds


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker as the store shows it at one moment."""

    worker: str
    process: Process
    beat: int


@dataclass
class Watch:
    """Tells which workers died, by looking at them again and again.

    Silence is measured on this process's monotonic clock, so that no clock that jumps, here or there, ends a lease.
    Of the time between two looks only a quarter of the lease counts: when this process was itself suspended, so may
    the others have been, and they shall have time to beat again.
    """

    lease: float
    clock: Callable[[], float] = time.monotonic
    _silence: dict[str, tuple[int, float]] = field(default_factory=dict)
    _looked: float | None = None

    def dead(self, pulses: Collection[Pulse]) -> set[str]:
        """Ids of the workers among ``pulses``, which are all that hold claims, that will not come back."""
        now = self.clock()
        passed = 0.0 if self._looked is None else min(now - self._looked, self.lease / 4)
        self._looked = now
        before, self._silence = self._silence, {}
        for pulse in pulses:
            beat, silence = before.get(pulse.worker, (None, 0.0))
            self._silence[pulse.worker] = (pulse.beat, silence + passed if beat == pulse.beat else 0.0)
        gone = {pulse.worker for pulse in pulses if pulse.process.gone}
        return gone | {worker for worker, (_, silence) in self._silence.items() if silence >= self.lease}
