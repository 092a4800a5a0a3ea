"""What a display of progress is told, by workers or from the store."""

from collections.abc import Sequence
from typing import Protocol

from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord


class Progress(Protocol):
    """What a display is told."""

    def started(self, images: int) -> None:
        """Training begins, with so many student images (images x epochs x runs) ahead."""

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """A cohort begins; so many are left that nobody trains yet."""

    def stepped(self, runs: Sequence[str], images: int) -> None:
        """Each run of these ids was trained on so many images."""

    def reached(self, run: str, images: int) -> None:
        """The run of this id has so many images behind it, whatever was told of it before.

        A checkpoint has them behind it, from which it is now gone on with, or another process has finished it.
        """

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """A run finished an epoch."""

    def failed(self, run: Run, reason: str) -> None:
        """A run failed."""

    def note(self, text: str) -> None:
        """Something that the user should read."""

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """All that is left are so many runs which others train, in these places."""


class Silent:
    """A display that shows nothing: of a worker whose progress is read from the store."""

    def started(self, images: int) -> None:
        """See :class:`Progress`."""

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """See :class:`Progress`."""

    def stepped(self, runs: Sequence[str], images: int) -> None:
        """See :class:`Progress`."""

    def reached(self, run: str, images: int) -> None:
        """See :class:`Progress`."""

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """See :class:`Progress`."""

    def failed(self, run: Run, reason: str) -> None:
        """See :class:`Progress`."""

    def note(self, text: str) -> None:
        """See :class:`Progress`."""

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """See :class:`Progress`."""
