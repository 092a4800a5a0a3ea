"""What is being trained now, quick for any number of runs."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from kdtable.store.claims import pulse_of
from kdtable.store.overview import Trainer
from kdtable.store.records import RunRecord
from kdtable.store.results import Store
from kdtable.store.rows import Reader
from kdtable.store.schema import runs, workers


@dataclass(frozen=True, slots=True)
class Activity:
    """What every worker trains, and what is left.

    Attributes:
        training: runs in training, by the process that trains them; empty for one that waits.
        failures: reason to number of failed runs, the most frequent first.
        epochs_waiting: epochs of the main stages of all runs that nobody trains.
    """

    training: Mapping[Trainer, list[RunRecord]]
    failures: Mapping[str, int]
    epochs_waiting: int

    def seconds_left(self) -> float | None:
        """Seconds until all is done if the workers of now go on like this; ``None`` if that is not known."""
        left = self.epochs_waiting + sum(run.epochs - run.last_epoch for some in self.training.values() for run in some)
        # Epochs of runs in a second: a worker ends an epoch of all its runs at about the same time.
        pace = sum(_pace(run) for some in self.training.values() for run in some)
        return left / pace if pace else None


def activity(store: Store) -> Activity:
    """Read what is being trained, and why runs failed."""
    with store.database.read() as db:
        alive = {row.id: row for row in db.execute(sa.select(workers)) if not pulse_of(row).process.gone}
        held = sa.and_(runs.c.status == "running", runs.c.claimed_by.in_(list(alive)))
        found = Reader(db).runs(db.execute(sa.select(runs.c.id).where(held)).scalars().all())
        reasons = sa.select(runs.c.reason, sa.func.count()).where(runs.c.status == "failed").group_by(runs.c.reason)
        failures = {str(reason): count for reason, count in db.execute(reasons)}
        idle = sa.and_(runs.c.status.in_(("planned", "running")), sa.not_(sa.func.coalesce(held, sa.false())))
        waiting = db.execute(sa.select(sa.func.coalesce(sa.func.sum(runs.c.epochs), 0)).where(idle)).scalar_one()
    by_worker: dict[str, list[RunRecord]] = defaultdict(list)
    for run in found:
        by_worker[str(run.claimed_by)].append(run)
    training = {Trainer(row.host, row.pid, row.seen): by_worker[key] for key, row in alive.items()}
    frequent = dict(sorted(failures.items(), key=lambda pair: -pair[1]))
    return Activity(training, frequent, int(waiting))


def _pace(run: RunRecord) -> float:
    seconds = run.result.wall_seconds if run.result else 0.0
    return run.last_epoch / seconds if seconds else 0.0
