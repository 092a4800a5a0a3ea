"""Where workers run: the contract of a backend."""

from dataclasses import dataclass
from typing import Protocol

from kdtable.execution.assignment import Assignment
from kdtable.execution.progress import Progress


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker has ended. ``reason`` says why, as the end of "worker ...", if it did not end by itself."""

    reason: str | None = None


class Backend(Protocol):
    """Runs workers: in this process, in others, on other machines.

    A worker calls :func:`kdtable.execution.worker.train_assignment`, wherever it is. It takes cohorts of its assignment
    by claims in the store, and the store has all that it made of them; neither travels through a backend. So workers
    need to know nothing of each other, and one that dies leaves its runs to those that live. Where files have other
    paths for a worker, its backend gives it ``assignment.moved(...)``.

    Attributes:
        workers: how many may train at once.
        tells_progress: whether workers tell ``progress`` what they do; else it is read from the store.
    """

    workers: int
    tells_progress: bool

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        """Start a worker, or queue it."""

    def wait(self, seconds: float) -> Ended | None:
        """Wait until a worker ends; ``None`` if none did within about so many seconds.

        Raises:
            BadRequest, OSError: what a worker gave up for, and the others would too.
        """

    def cancel(self) -> None:
        """End all workers; when this returns they have. What they hold they release, and checkpoints stay."""
