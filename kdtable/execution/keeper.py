"""What a cohort's training asks of the store."""

from collections.abc import Sequence

from kdtable.models.ensemble import Ensemble
from kdtable.models.network import Network
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.base import Task
from kdtable.training.member import Member


class Keeper:
    """A cohort's `Sink` that also resumes members and knows which runs this process still holds.

    Does nothing by itself, as ranks above 0 need: rank 0 stores, reads and reports.
    """

    def stepped(self, members: Sequence[Member], images: int) -> None:
        """Report a step of these members."""

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """Store an epoch."""

    def failed(self, run_id: str, error: BaseException) -> None:
        """Mark a run as failed."""

    def note(self, text: str) -> None:
        """Show a message to the user."""

    def resume(self, member: Member) -> None:
        """Load a fresh member's checkpoint."""

    def left(self, cohort: CohortPlan) -> tuple[Run, ...]:
        """Runs that are still claimed: not done, not failed, not taken over."""
        return ()

    def measure(self, cohort: CohortPlan, network: Network | Ensemble, task: Task) -> None:
        """Store the teacher's accuracy, and warn the user if it is too low."""
