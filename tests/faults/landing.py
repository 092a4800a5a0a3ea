"""Where commands were when they were killed."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from kdtable.store import NoStore
from tests.cli.command import epochs_in, runs_in
from tests.faults.trail import TRAINING


@dataclass(frozen=True)
class Landing:
    """One kill.

    Attributes:
        when: the moment, seconds from the command's start, or the chosen point.
        place: what the command was at.
        epochs: in the store, after it.
        done: runs in the store that are done.
    """

    when: str
    place: str
    epochs: int
    done: int

    @property
    def in_training(self) -> bool:
        """Whether students were learning, and nothing was being kept of what they had learnt."""
        return self.place.startswith(TRAINING) and ":" not in self.place


def progress(results: Path) -> tuple[int, int]:
    """Epochs and done runs in a store, which may not have been made yet."""
    with suppress(NoStore):
        return len(epochs_in(results)), [run["status"] for run in runs_in(results).values()].count("done")
    return 0, 0


def table(landings: list[Landing]) -> str:
    rows = [(number, x.when, x.place, x.epochs, x.done) for number, x in enumerate(landings, 1)]
    return tabulate(rows, ("", "killed at", "it was", "epochs kept", "runs done"), tablefmt="simple")
