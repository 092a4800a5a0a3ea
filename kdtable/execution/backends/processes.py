"""Several cohorts at once on one machine: worker processes that share a request's runs by their claims.

Each worker tells its progress through a pipe of its own, so that one that is killed, even in the middle of a message,
disturbs no other; the end of its pipe is how its death is known.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

from kdtable.errors import BadRequest
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.base import Ended
from kdtable.execution.devices import DeviceSlot
from kdtable.execution.interruptions import deaf_to_interruptions, end_with_parent
from kdtable.execution.progress import Progress
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord

#: What a worker does, with a link to the command: something that can be pickled.
Work = Callable[["Remote"], None]

_CONTEXT: Final = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half


class Processes:
    """Worker processes on this machine, which tell their progress.

    Args:
        slots: where each computes.
    """

    tells_progress = True

    def __init__(self, slots: Sequence[DeviceSlot]) -> None:
        self.workers = len(slots)
        self._slots = list(slots)
        self._started: dict[Connection, BaseProcess] = {}
        self._links: list[Connection] = []  # of those that have not ended
        self._unsent: dict[Connection, Assignment] = {}
        self._listener: Listener | None = None

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`."""
        self._listener = self._listener or Listener(progress)
        slot = self._slots[len(self._started) % len(self._slots)]
        link = start(self._started, partial(_train, slot), slot.cores)
        self._links.append(link)
        self._unsent[link] = assignment

    def wait(self, seconds: float) -> Ended | None:
        """See :class:`~kdtable.execution.backends.base.Backend`: passes on meanwhile what the workers tell.

        Raises:
            BadRequest, OSError: what a worker gave up for.
        """
        assert self._listener is not None
        while self._unsent:  # not when they start, since one reads it once it has imported torch
            send(*self._unsent.popitem())
        for link in wait(self._links, seconds):
            assert isinstance(link, Connection)
            try:
                name, arguments = link.recv()
            except (EOFError, OSError):  # between two messages, or within one
                self._links.remove(link)
                return Ended(_how_it_ended(self._started[link]))
            if name == "gave up":
                raise arguments[0]
            self._listener.hear(name, arguments)
        return None

    def cancel(self) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`."""
        stop(self._started)


class Listener:
    """Passes on to a display what several workers tell."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._begun = False

    def hear(self, name: str, arguments: tuple[Any, ...]) -> None:
        """One message: the method of :class:`Progress` that is called, and its arguments."""
        if name == "started" and self._begun:  # each counts the whole request
            return
        self._begun = self._begun or name == "started"
        getattr(self._progress, name)(*arguments)


def start(workers: dict[Connection, BaseProcess], work: Work, cores: Sequence[int]) -> Connection:
    """Start a worker process, which is added to ``workers`` under the link to it that is returned."""
    with deaf_to_interruptions():
        ours, theirs = _CONTEXT.Pipe()
        # Not as a daemon, which could start no processes to decode images.
        workers[ours] = _CONTEXT.Process(target=_work, args=(work, tuple(cores), theirs))
        workers[ours].start()
        theirs.close()
    return ours


def send(link: Connection, assignment: Assignment) -> None:
    """Tell a worker what to train."""
    try:
        link.send(assignment)
    except (BrokenPipeError, ConnectionResetError):
        return  # it has died by now, as listening to it will show


def _how_it_ended(worker: BaseProcess) -> str | None:
    """Wait for a worker that has closed its pipe; how it ended, if not by itself."""
    worker.join()
    return how_it_died(worker)


def how_it_died(worker: BaseProcess) -> str | None:
    """How a process ended; ``None`` where it lives, or ended by itself."""
    code = worker.exitcode or 0
    if not code:
        return None
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
    return f"process {worker.pid} {how}{hint}"


def stop(workers: dict[Connection, BaseProcess]) -> None:
    """Let workers release what they hold."""
    started = [worker for worker in workers.values() if worker.pid is not None]
    for link in workers:
        link.close()  # so that none waits to be heard
    for worker in started:
        worker.terminate()
    for worker in started:
        worker.join()


class Remote:
    """A worker's progress, as messages to the process that shows it.

    Raises:
        KeyboardInterrupt: from any method, when that process is gone.
    """

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._turn = threading.Lock()  # a teacher's cache gives notes from another thread

    def assignment(self) -> Assignment:
        """What to train."""
        try:
            assigned: Assignment = self._link.recv()
        except (EOFError, ConnectionResetError) as error:
            raise KeyboardInterrupt from error
        return assigned

    def gave_up(self, error: BadRequest | OSError) -> None:
        """The request is bad, or cannot be ended now."""
        self.send("gave up", error)

    def started(self, images: int) -> None:
        """See :class:`Progress`."""
        self.send("started", images)

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """See :class:`Progress`."""
        self.send("cohort", left, runs, teacher)

    def stepped(self, runs: Sequence[str], images: int) -> None:
        """See :class:`Progress`."""
        self.send("stepped", runs, images)

    def reached(self, run: str, images: int) -> None:
        """See :class:`Progress`."""
        self.send("reached", run, images)

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """See :class:`Progress`."""
        self.send("epoch", run, record)

    def failed(self, run: Run, reason: str) -> None:
        """See :class:`Progress`."""
        self.send("failed", run, reason)

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self.send("note", text)

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """The last workers of a command wait for each other as a rule: not worth a word."""

    def send(self, name: str, *arguments: Any) -> None:
        """Send a message."""
        try:
            with self._turn:
                self._link.send((name, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise KeyboardInterrupt from error


def _train(slot: DeviceSlot, remote: Remote) -> None:
    """What a worker process does."""
    from kdtable.execution.worker import train_assignment

    train_assignment(remote.assignment(), remote, slot.device, slot.sharers)


def _work(work: Work, cores: Sequence[int], link: Connection) -> None:
    """A worker process."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _interrupt_again
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    threading.Thread(target=end_with_parent, daemon=True).start()
    remote = Remote(link)
    try:
        try:
            work(remote)
        except (BadRequest, OSError) as error:
            remote.gave_up(error)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends anyway, and is not to be disturbed any more
    except KeyboardInterrupt:
        # All is released: end as what was killed ends.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(*_: object) -> None:
    """Once, so that nothing disturbs what an interruption leads to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _interrupt_again(unheard: "sys.UnraisableHookArgs") -> None:
    """An interruption that came amid a callback, from which Python drops it, comes again a moment later."""
    if not issubclass(unheard.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unheard)
        return
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
