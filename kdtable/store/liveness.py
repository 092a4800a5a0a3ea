"""Whether a training process is alive: looked up on this machine, judged by its heartbeats on others."""

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

#: Seconds without a heartbeat after which a process counts as dead. It beats twelve times as often.
LEASE: Final = 60.0
BEATS_PER_LEASE: Final = 12


@dataclass(frozen=True, slots=True)
class Process:
    """A process, identified uniquely across machines and restarts.

    Attributes:
        host: the machine's name, for messages.
        machine: boot id and pid namespace. A pid names the same process only where these are equal.
        pid: process id.
        started: start time; tells it from a later process of the same pid.
    """

    host: str
    machine: str
    pid: int
    started: str

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended; always false for a process on another machine."""
        if self.machine != _machine():
            return False
        ended, started = _look_up(self.pid)
        return ended or (bool(started) and started != self.started)  # if the look-up fails, heartbeats decide


@lru_cache
def own_process(pid: int) -> Process:
    """This process. ``pid`` is its id: a fork has another one, and must not share the cached value."""
    return Process(socket.gethostname(), _machine(), pid, _look_up(pid)[1])


@lru_cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: one pid namespace per machine
        return f"{socket.gethostname()} {getnode():x}"


def _look_up(pid: int) -> tuple[bool, str]:
    """Whether a process has ended, and its start time (empty if unknown)."""
    try:
        process = psutil.Process(pid)
        # Relative to boot, so that setting the clock does not change it.
        started = f"{process.create_time() - psutil.boot_time():.2f}"
        # A zombie has ended and only waits for its parent.
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD), started
    except psutil.NoSuchProcess:
        return True, ""
    except psutil.Error:
        return False, ""


def lease() -> float:
    """Seconds without a heartbeat after which a process counts as dead: ``KDTABLE_LEASE``, by default 60.

    All processes that share a store need the same value.

    Raises:
        BadRequest: the variable is not a number above zero.
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
    """A worker and its heartbeat count at one moment."""

    worker: str
    process: Process
    beat: int


@dataclass
class Watch:
    """Detects dead workers by comparing their heartbeats between calls.

    Silence is measured on this process's monotonic clock, so a clock that jumps ends no lease.
    At most a quarter of the lease counts between two calls: if this process was suspended, the others may have been
    too, and need time to beat again.
    """

    lease: float
    clock: Callable[[], float] = time.monotonic
    _silence: dict[str, tuple[int, float]] = field(default_factory=dict)
    _last_call: float | None = None

    def dead(self, pulses: Collection[Pulse]) -> set[str]:
        """Ids of the workers that are dead. ``pulses`` must list every worker that holds claims."""
        now = self.clock()
        passed = 0.0 if self._last_call is None else min(now - self._last_call, self.lease / 4)
        self._last_call = now
        before, self._silence = self._silence, {}
        for pulse in pulses:
            beat, silence = before.get(pulse.worker, (None, 0.0))
            self._silence[pulse.worker] = (pulse.beat, silence + passed if beat == pulse.beat else 0.0)
        gone = {pulse.worker for pulse in pulses if pulse.process.gone}
        return gone | {worker for worker, (_, silence) in self._silence.items() if silence >= self.lease}
