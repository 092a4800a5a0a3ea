"""Worker processes on one machine; each claims other cohorts of a request.

Each worker reports its progress through its own pipe, so that a worker killed in the middle of a message disturbs no
other. The end of the pipe reveals a worker's death.
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

#: A worker's picklable main function; its argument is the link to the command.
Work = Callable[["Remote"], None]

_CONTEXT: Final = multiprocessing.get_context("spawn")  # forking is unsafe with torch's threads


class Processes:
    """Runs worker processes on this machine.

    Args:
        slots: the workers' device slots.
    """

    tells_progress = True

    def __init__(self, slots: Sequence[DeviceSlot]) -> None:
        self.workers = len(slots)
        self._slots = list(slots)
        self._started: dict[Connection, BaseProcess] = {}
        self._links: list[Connection] = []  # to workers that have not ended
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
        """See :class:`~kdtable.execution.backends.base.Backend`; passes the workers' messages to the display.

        Raises:
            BadRequest, OSError: the error that made a worker give up.
        """
        assert self._listener is not None
        while self._unsent:  # not in submit: a worker first imports torch, and sending would wait for that
            send(*self._unsent.popitem())
        for link in wait(self._links, seconds):
            assert isinstance(link, Connection)
            try:
                name, arguments = link.recv()
            except (EOFError, OSError):  # the pipe ended, between two messages or within one
                self._links.remove(link)
                return Ended(how_it_ended(self._started[link]))
            if name == "gave up":
                raise arguments[0]
            self._listener.hear(name, arguments)
        return None

    def cancel(self) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`."""
        stop(self._started)


class Listener:
    """Passes several workers' progress messages to a display."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._begun = False

    def hear(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Handle a message: the name of a method of :class:`Progress`, and its arguments."""
        if name == "started" and self._begun:  # each worker reports the whole request
            return
        self._begun = self._begun or name == "started"
        getattr(self._progress, name)(*arguments)


def start(workers: dict[Connection, BaseProcess], work: Work, cores: Sequence[int]) -> Connection:
    """Start a worker process, add it to ``workers`` by its link, and return the link."""
    with deaf_to_interruptions():
        ours, theirs = _CONTEXT.Pipe()
        # Not a daemon: daemons cannot start processes, which decode images.
        workers[ours] = _CONTEXT.Process(target=_work, args=(work, tuple(cores), theirs))
        workers[ours].start()
        theirs.close()
    return ours


def send(link: Connection, assignment: Assignment) -> None:
    """Send a worker its assignment."""
    try:
        link.send(assignment)
    except (BrokenPipeError, ConnectionResetError):
        return  # it has died; reading from the link will show that


def how_it_ended(worker: BaseProcess) -> str | None:
    """Wait for a worker that has closed its pipe; return how it ended, or ``None`` if normally."""
    worker.join()
    code = worker.exitcode or 0
    if not code:
        return None
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
    return f"process {worker.pid} {how}{hint}"


def stop(workers: dict[Connection, BaseProcess]) -> None:
    """Terminate workers and wait until they have released their claims."""
    started = [worker for worker in workers.values() if worker.pid is not None]
    for link in workers:
        link.close()  # so that no worker blocks on sending
    for worker in started:
        worker.terminate()
    for worker in started:
        worker.join()


class Remote(Progress):
    """A worker's end of the pipe: reports progress to the command, but not that it waits for other workers.

    Raises:
        KeyboardInterrupt: from any method, if the command is gone.
    """

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._lock = threading.Lock()  # a teacher cache sends notes from another thread

    def assignment(self) -> Assignment:
        """Receive the assignment."""
        try:
            assigned: Assignment = self._link.recv()
        except (EOFError, ConnectionResetError) as error:
            raise KeyboardInterrupt from error
        return assigned

    def gave_up(self, error: BadRequest | OSError) -> None:
        """Report an error that ends this worker."""
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

    def send(self, name: str, *arguments: Any) -> None:
        """Send a message."""
        try:
            with self._lock:
                self._link.send((name, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise KeyboardInterrupt from error


def _train(slot: DeviceSlot, remote: Remote) -> None:
    """Main function of a worker."""
    from kdtable.execution.worker import train_assignment

    train_assignment(remote.assignment(), remote, slot.device, slot.sharers)


def _work(work: Work, cores: Sequence[int], link: Connection) -> None:
    """Entry point of a worker process."""
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
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is about to end
    except KeyboardInterrupt:
        # All claims are released: end as if killed by the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt once; ignore further signals, so that nothing disturbs the cleanup."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _interrupt_again(unheard: "sys.UnraisableHookArgs") -> None:
    """Repeat an interruption that Python dropped because it came during a callback."""
    if not issubclass(unheard.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unheard)
        return
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
