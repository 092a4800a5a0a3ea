"""One worker made of several ranks on this machine, which train every run together (``--devices``).

The command is not a rank, so it never blocks in a collective: it listens to the ranks and ends them.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from kdtable.distributed import Ranks
from kdtable.errors import BadRequest
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.base import Ended
from kdtable.execution.backends.processes import Listener, Remote, how_it_ended, send, start
from kdtable.execution.progress import Progress
from kdtable.execution.ranks import BACKEND, PATIENCE, out_of_memory, rank_failed, reason_of, train_shards
from kdtable.hardware import divided, own_cores

#: Seconds that other ranks have to report their failures after the first.
SETTLING: Final = 2.0

#: Seconds that rank 0 has to release its runs. The runs of a killed process become free too, a little later.
GRACE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank failed.

    Attributes:
        when: time of the machine's monotonic clock; the first failure causes the others.
        reason: the reason, in one line.
        out_of_memory: whether a smaller cohort may fit.
        error: the error to raise instead, if it is the user's to solve.
    """

    when: float
    reason: str
    out_of_memory: bool = False
    error: BadRequest | OSError | None = None


class RankGroup:
    """Runs a process group on this machine.

    If a rank fails, the group ends and the command fails with that rank's reason; finished epochs are kept. If memory
    ran out, the group starts again with half the cohort size.

    Args:
        devices: the device of each rank.
    """

    workers = 1
    tells_progress = True

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices
        self._ranks: dict[Connection, BaseProcess] = {}
        self._links: list[Connection] = []  # to ranks that have not ended
        self._together = 0  # number of runs in the cohort in training

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`."""
        self._assignment, self._progress, self._listener = assignment, progress, Listener(progress)
        self._start()

    def wait(self, seconds: float) -> Ended | None:
        """See :class:`~kdtable.execution.backends.base.Backend`; passes rank 0's messages to the display.

        Raises:
            BadRequest, OSError: why a rank failed.
        """
        for link in wait(self._links, seconds):
            assert isinstance(link, Connection)
            if failure := self._hear(link):
                self._fail(*self._cause(link, failure))
                return None
        return None if self._links else Ended()

    def cancel(self) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`."""
        started = [process for process in self._ranks.values() if process.pid is not None]
        for leader in started[:1]:
            leader.terminate()  # takes effect once it waits for no other rank
        for process in started[1:]:
            process.kill()  # they hold no claims
        for process in started:
            process.join(GRACE)
            process.kill()
            process.join()

    def _start(self) -> None:
        size = len(self._devices)
        cores = divided(sorted(own_cores()), min(size, len(own_cores())))
        self._ranks, self._together = {}, 0
        self._meeting = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
        for rank, device in enumerate(self._devices):
            work = partial(_train, rank, size, self._meeting.port, device)
            start(self._ranks, work, cores[rank % len(cores)])
        self._links = list(self._ranks)
        for link in self._links:
            send(link, self._assignment)

    def _hear(self, link: Connection) -> Failure | None:
        """Handle a rank's message; return its failure, if it failed."""
        try:
            name, arguments = link.recv()
        except (EOFError, OSError):
            self._links.remove(link)
            died = how_it_ended(self._ranks[link])
            return Failure(0.0, died) if died else None
        if name == "failed rank":
            failure: Failure = arguments[0]
            return failure
        if name == "cohort":
            self._together = len(arguments[1])
        self._listener.hear(name, arguments)
        return None

    def _cause(self, link: Connection, failure: Failure) -> tuple[int, Failure]:
        """The rank that failed first, of those that report a failure within :data:`SETTLING`, and its failure."""
        failures = {link: failure}
        end = time.monotonic() + SETTLING
        while silent := [other for other in self._links if other not in failures]:
            ready = wait(silent, max(0.0, end - time.monotonic()))
            if not ready:
                break
            found = {other: self._hear(other) for other in ready if isinstance(other, Connection)}
            failures |= {other: why for other, why in found.items() if why}
        first = min(failures, key=lambda other: failures[other].when)
        return list(self._ranks).index(first), failures[first]

    def _fail(self, rank: int, cause: Failure) -> None:
        """End the group; restart it with half the cohort size if memory ran out, else raise the cause."""
        self.cancel()
        half = self._together // 2
        if not (cause.out_of_memory and half):
            raise cause.error or rank_failed(rank, cause.reason)
        what = f"memory ran out on rank {rank} with {self._together} runs together"
        self._progress.note(f"{what}, so they go on in cohorts of at most {half} ({cause.reason})")
        self._assignment = replace(self._assignment, at_most=half)
        self._start()


def _train(rank: int, size: int, port: int, device: str, remote: Remote) -> None:
    """Main function of a rank."""
    if rank:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it has no claims to release
    try:
        assignment = remote.assignment()
        store = TCPStore("127.0.0.1", port, size)
        dist.init_process_group(BACKEND, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        _train_as(Ranks(rank, size), device, assignment, remote)
    except Exception as error:
        known = error if isinstance(error, BadRequest | OSError) else None
        failure = Failure(time.monotonic(), reason_of(error), out_of_memory(error), known)
        remote.send("failed rank", failure)
        os._exit(1)  # immediately: closing the group may wait for ranks that wait for this one
    dist.destroy_process_group()


def _train_as(ranks: Ranks, device: str, assignment: Assignment, remote: Remote) -> None:
    from kdtable.execution.worker import train_assignment

    if ranks.rank:
        train_shards(ranks, torch.device(device), assignment)
    else:
        train_assignment(assignment, remote, device, ranks=ranks)
        ranks.broadcast(None)
