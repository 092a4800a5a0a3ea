"""MLflow (extra ``[mlflow]``), a run per run."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from kdtable.execution.loggers.base import Ending, LoggedRun, scalars
from kdtable.recipes.record import EpochRecord

#: The tag that has our id of a run.
RUN: Final = "kdtable.run"
#: A metric that every epoch has.
ALWAYS: Final = "train/loss"
#: Most parameters that MLflow takes at once.
MOST: Final = 100
ENDINGS: Final[Mapping[Ending, str]] = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflow:
    """Logs to ``MLFLOW_TRACKING_URI``, else into a SQLite file in the folder.

    ``mlflow ui --backend-store-uri sqlite:///results/logs/mlflow/mlflow.db`` shows that. A run that goes on is found by
    its tag ``kdtable.run``.

    Args:
        folder: of all logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "mlflow"
        self._runs: dict[str, str] = {}  # MLflow's ids by ours
        self._logged: dict[str, set[int]] = {}  # steps by our ids

    def begin(self, run: LoggedRun, history: Sequence[EpochRecord]) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        theirs = self._found(run.id) or self._created(run)
        self._client.update_run(theirs, status="RUNNING")
        self._runs[run.id] = theirs
        self._logged[run.id] = {metric.step for metric in self._client.get_metric_history(theirs, ALWAYS)}
        for step, record in enumerate(history, 1):
            self.epoch(run.id, step, record)

    def epoch(self, run: str, step: int, record: EpochRecord) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        if step in self._logged[run]:  # a run that is trained again has the same numbers
            return
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in scalars(record).items()]
        self._client.log_batch(self._runs[run], metrics=metrics)
        self._logged[run].add(step)

    def end(self, run: str, how: Ending) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        self._client.set_terminated(self._runs.pop(run), ENDINGS[how])

    def table(self, markdown: str) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        run = self._client.create_run(self._experiment, run_name="table").info.run_id
        self._client.log_text(run, markdown, "table.md")
        self._client.set_terminated(run)

    @cached_property
    def _client(self) -> MlflowClient:
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it reports each table that it makes
        if "MLFLOW_TRACKING_URI" in os.environ:
            return MlflowClient()
        self._folder.mkdir(parents=True, exist_ok=True)
        return MlflowClient(f"sqlite:///{self._folder / 'mlflow.db'}")

    @cached_property
    def _experiment(self) -> str:
        """The id of the experiment, which is made if there is none."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "kdtable")
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        ours = "MLFLOW_TRACKING_URI" not in os.environ
        files = (self._folder / "artifacts").as_uri() if ours else None  # else they go into the working directory
        return str(self._client.create_experiment(name, artifact_location=files))

    def _found(self, run: str) -> str | None:
        found = self._client.search_runs([self._experiment], filter_string=f"tags.`{RUN}` = '{run}'")
        return found[0].info.run_id if found else None

    def _created(self, run: LoggedRun) -> str:
        theirs: str = self._client.create_run(self._experiment, tags={RUN: run.id}, run_name=run.name).info.run_id
        params = [Param(name, str(value)) for name, value in _flat(run.config)]
        for start in range(0, len(params), MOST):
            self._client.log_batch(theirs, params=params[start : start + MOST])
        return theirs


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by their dotted names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
