"""The progress events that a display receives, from workers or from the store."""

from collections.abc import Sequence

from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord


class Progress:
    """Receives progress events; shows nothing unless a subclass does."""

    def started(self, images: int) -> None:
        """Begin a grid of so many student images (images x epochs x runs)."""

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """Begin a cohort; ``left`` more cohorts are unclaimed."""

    def stepped(self, runs: Sequence[str], images: int) -> None:
        """Add so many trained images to each run of these ids."""

    def reached(self, run: str, images: int) -> None:
        """Set a run's progress in images, overriding earlier events.

        The run resumed from a checkpoint, or another process finished it.
        """

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """Note that a run finished an epoch."""

    def failed(self, run: Run, reason: str) -> None:
        """Note that a run failed."""

    def note(self, text: str) -> None:
        """Show a message to the user."""

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """Note that all remaining runs are training in these other processes."""
