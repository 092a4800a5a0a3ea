"""Several cohorts at once on one machine: worker processes that share a request's runs by their claims.

Each worker tells its progress through a pipe of its own, so that one that is killed, even in the middle of a message,
disturbs no other; the end of its pipe is how its death is known.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from kdtable.errors import BadRequest
from kdtable.execution.assignment import Assignment
from kdtable.execution.devices import DeviceSlot
from kdtable.execution.interruptions import deaf_to_interruptions, end_with_parent
from kdtable.execution.progress import Progress
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord

#: The method of :class:`Progress` that is called, and its arguments; "gave up" and the error is the last message of a
#: worker that found the request to be bad, or could not use a file.
Message = tuple[str, tuple[Any, ...]]


def train_in_workers(at: Sequence[DeviceSlot], assignment: Assignment, progress: Progress) -> None:
    """Train planned runs in one process per place; returns when all of these have ended.

    Workers that are killed are told of as notes. The others take over what they had begun.

    Raises:
        BadRequest, OSError: what ended a worker; the others are then stopped.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    workers: dict[Connection, BaseProcess] = {}
    try:
        resource_tracker.ensure_running()  # else it would start with the first worker, and let Ctrl-C through again
        with deaf_to_interruptions():
            for slot in at:
                ours, theirs = context.Pipe()
                workers[ours] = context.Process(target=_work, args=(slot, theirs))
                workers[ours].start()
                theirs.close()
        for link in workers:
            _assign(link, assignment)
        _listen(workers, progress)
    except BaseException:
        _stop(workers)
        raise


def _assign(link: Connection, assignment: Assignment) -> None:
    try:
        link.send(assignment)
    except (BrokenPipeError, ConnectionResetError):
        return  # it has died by now, as listening to it will show


def _listen(workers: dict[Connection, BaseProcess], progress: Progress) -> None:
    """Pass on what the workers tell until all have ended."""
    begun = False
    links = list(workers)
    while links:
        for link in wait(links):
            assert isinstance(link, Connection)
            try:
                name, arguments = link.recv()
            except (EOFError, OSError):  # between two messages, or within one
                links.remove(link)
                _bury(workers[link], len(links), progress)
                continue
            if name == "gave up":
                raise arguments[0]
            if name != "started" or not begun:  # each counts the whole request
                begun = begun or name == "started"
                getattr(progress, name)(*arguments)


def _bury(worker: BaseProcess, others: int, progress: Progress) -> None:
    """Wait for a worker that has closed its pipe, and tell if it did not end by itself."""
    worker.join()
    code = worker.exitcode or 0
    if not code:
        return
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
    left = ": the others take over its runs" if others else ""
    progress.note(f"worker process {worker.pid} {how}{hint}{left}")


def _stop(workers: dict[Connection, BaseProcess]) -> None:
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
        self._send("gave up", error)

    def started(self, images: int) -> None:
        """See :class:`Progress`."""
        self._send("started", images)

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """See :class:`Progress`."""
        self._send("cohort", left, runs, teacher)

    def stepped(self, runs: Sequence[str], images: int) -> None:
        """See :class:`Progress`."""
        self._send("stepped", runs, images)

    def reached(self, run: str, images: int) -> None:
        """See :class:`Progress`."""
        self._send("reached", run, images)

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """See :class:`Progress`."""
        self._send("epoch", run, record)

    def failed(self, run: Run, reason: str) -> None:
        """See :class:`Progress`."""
        self._send("failed", run, reason)

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self._send("note", text)

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """The last workers of a command wait for each other as a rule: not worth a word."""

    def _send(self, name: str, *arguments: Any) -> None:
        try:
            with self._turn:
                self._link.send((name, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise KeyboardInterrupt from error


def _work(slot: DeviceSlot, link: Connection) -> None:
    """A worker process."""
    from kdtable.execution.worker import train_planned

    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _interrupt_again
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cores)
    threading.Thread(target=end_with_parent, daemon=True).start()
    remote = Remote(link)
    try:
        try:
            train_planned(slot, remote.assignment(), remote)
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
