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
        when: the moment, in seconds from the command's first step, or the chosen point.
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
        """Whether an epoch had begun and was not over: students learnt, were measured, or what they learnt was kept."""
        return self.place.startswith(TRAINING)

    @property
    def in_keeping(self) -> bool:
        """Whether, within an epoch, what a student had learnt was being kept."""
        return self.in_training and ":" in self.place


def progress(results: Path) -> tuple[int, int]:
    """Epochs and done runs in a store, which may not have been made yet."""
    with suppress(NoStore):
        return len(epochs_in(results)), [run["status"] for run in runs_in(results).values()].count("done")
    return 0, 0


def table(landings: list[Landing]) -> str:
    rows = [(number, x.when, x.place, x.epochs, x.done) for number, x in enumerate(landings, 1)]
    return tabulate(rows, ("", "killed at", "it was", "epochs kept", "runs done"), tablefmt="simple")


def summary(landings: list[Landing]) -> str:
    """How many landed inside training."""
    inside, keeping = sum(x.in_training for x in landings), sum(x.in_keeping for x in landings)
    return f"{inside} of {len(landings)} inside training, {keeping} of these while an epoch was being kept"
