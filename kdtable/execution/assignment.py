"""What every worker of a command is given."""

from dataclasses import dataclass
from pathlib import Path

from kdtable.planning.cohorts import PlannedRun


@dataclass(frozen=True, slots=True)
class Assignment:
    """What every worker of a command is told: the arguments of :func:`kdtable.execution.worker.train_planned`."""

    planned_runs: tuple[PlannedRun, ...]
    results: Path
    data_root: Path
    url: str | None
    keep: str
