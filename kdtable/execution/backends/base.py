"""The contract of a backend, which decides where workers run."""

from dataclasses import dataclass
from typing import Protocol

from kdtable.execution.assignment import Assignment
from kdtable.execution.progress import Progress


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker has ended. ``reason`` completes "worker ..." if it did not end by itself."""

    reason: str | None = None


class Backend(Protocol):
    """Runs workers in this process, in other processes, or on other machines.

    A worker calls :func:`kdtable.execution.worker.train_assignment`. It claims cohorts in the store and writes its
    results there; neither travels through the backend. So workers need not know each other, and the others take over
    the runs of one that dies. Where a worker sees files under other paths, its backend gives it
    ``assignment.moved(...)``. An assignment brings its plug-ins along: a process that unpickles it has loaded them, or
    has raised the `BadRequest` that says what is wrong with them.

    Attributes:
        workers: maximum number of concurrent workers.
        tells_progress: whether workers report to ``progress``; else progress is read from the store.
    """

    workers: int
    tells_progress: bool

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        """Start a worker, or queue it."""

    def wait(self, seconds: float) -> Ended | None:
        """Wait until a worker ends; return ``None`` if none ends within about ``seconds``.

        Raises:
            BadRequest, OSError: the error that made a worker give up, and that others would meet too.
        """

    def cancel(self) -> None:
        """End all workers and wait for that. They release their claims; checkpoints stay."""
