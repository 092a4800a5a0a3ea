"""The contract of a backend, which decides where workers run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kdtable.execution.assignment import Assignment
from kdtable.execution.progress import Progress
from kdtable.execution.timings import Timings
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker has ended.

    Attributes:
        reason: completes "worker ..." if it did not end by itself.
        assignment: what it was to train, where a backend has an assignment for each worker.
    """

    reason: str | None = None
    assignment: Assignment | None = None


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


class Engine(Backend, Protocol):
    """A backend that schedules by itself: it is given parts of a request when these are ready to train.

    :mod:`kdtable.execution.dispatch` has the loop. ``workers`` is the number of assignments that it takes at a time,
    and each :class:`Ended` names its assignment. What a worker leaves undone is submitted again.
    """

    def parts(self, cohorts: Sequence[CohortPlan]) -> list[tuple[Run, ...]]:
        """Divide cohorts that are ready into the runs of each assignment."""

    def check(self, assignment: Assignment) -> None:
        """Raise `BadRequest` if the engine cannot train this: its machines do not see the store, for example."""

    def plan_words(self, cohorts: Sequence[CohortPlan], timings: Timings) -> str:
        """What would be submitted if all of these were ready, as a clause."""

    def leave(self, assignment: Assignment, runs: Iterable[Run]) -> list[str]:
        """Submit these runs of a request in their order, to be trained without this command; the jobs' names.

        Raises:
            BadRequest: the engine ends with the command.
        """
