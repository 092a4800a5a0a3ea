"""The contract of a logger, and what every logger shows of a run and of an epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from kdtable.planning.cohorts import PlannedRun
from kdtable.recipes.record import EpochRecord

#: How a run ended. One that was interrupted goes on with a later command.
Ending = Literal["done", "failed", "interrupted"]

#: A prefix of metrics that a task measures on training images.
_TRAIN = "train-"


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """What a logger shows of a run.

    Attributes:
        id: the run's id.
        name: its row, pair and seed, for people.
        pair: TEACHER:STUDENT.
        config: its identity: names, recipe, loss weights and hyper-parameters.
    """

    id: str
    name: str
    pair: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, planned: PlannedRun) -> "LoggedRun":
        """What is shown of a planned run."""
        run, pair = planned.run, str(planned.pair)
        names = {"run": run.id, "pair": pair, "row": run.row, "seed": run.seed, "paper": planned.paper}
        return cls(run.id, f"{run.row} {pair} seed {run.seed}", pair, names | run.protocol)


class Logger(Protocol):
    """Receives the epochs of runs. It may raise anything: then it is switched off, and training goes on.

    Example:
        class Lines:
            def __init__(self, folder: Path) -> None:
                self._file = folder / "lines.txt"
            ...
    """

    def begin(self, run: LoggedRun, history: Sequence[EpochRecord]) -> None:
        """Begin a run, or go on with it. The log then has the epochs of ``history``, once each, and no others."""

    def epoch(self, run: str, step: int, record: EpochRecord) -> None:
        """Log an epoch of a run that has begun; ``step`` counts the epochs of all its stages, from 1."""

    def end(self, run: str, how: Ending) -> None:
        """End a run that has begun."""

    def table(self, markdown: str) -> None:
        """Log the table of a finished grid."""


def scalars(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch by the names under which they are logged.

    Example:
        scalars(record)["test/top1"]  # 0.7062, as measured
    """
    named = {"train/loss": record.train_loss, "lr": record.lr, "seconds": record.seconds}
    terms = {f"loss/{name}": value for name, value in record.terms.items()}
    test = {} if record.test_loss is None else {"test/loss": record.test_loss}
    return named | terms | test | {_metric(name): value for name, value in record.metrics.items()}


def _metric(name: str) -> str:
    return f"train/{name.removeprefix(_TRAIN)}" if name.startswith(_TRAIN) else f"test/{name}"
