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

import psutil

from kdtable.errors import BadRequest

#: Seconds of silence after which a process counts as dead. Its beats come in a twelfth of that.
LEASE: Final = 60.0
BEATS_PER_LEASE: Final = 12


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
        ended, started = _look_up(self.pid)
        return ended or (bool(started) and started != self.started)  # what cannot be looked up is left to its beats


@lru_cache
def own_process(pid: int) -> Process:
    """This process, of which ``pid`` is the id (asked for, since a fork has another one)."""
    return Process(socket.gethostname(), _machine(), pid, _look_up(pid)[1])


@lru_cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux: one space of process ids per machine
        return f"{socket.gethostname()} {getnode():x}"


def _look_up(pid: int) -> tuple[bool, str]:
    """Whether a process has ended, and its start as the system tells it; no start where that cannot be had."""
    try:
        process = psutil.Process(pid)
        # Since the machine's start, which no change of the clock moves.
        started = f"{process.create_time() - psutil.boot_time():.2f}"
        # A zombie has ended, and only waits for its parent to notice.
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD), started
    except psutil.NoSuchProcess:
        return True, ""
    except psutil.Error:
        return False, ""


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
