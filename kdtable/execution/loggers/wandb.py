"""Weights & Biases (extra ``[wandb]``), a run per run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from kdtable.execution.loggers.base import Ending, LoggedRun, scalars
from kdtable.recipes.record import EpochRecord


class Wandb:
    """Logs to wandb's server where the user is logged in and it can be reached, else into files for ``wandb sync``.

    The variables ``WANDB_MODE``, ``WANDB_DIR`` and ``WANDB_PROJECT`` are obeyed. A run keeps its id, so what goes on
    joins what was logged before.

    Args:
        folder: of all logs; wandb makes a folder ``wandb`` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mode: str | None = None
        self._runs: dict[str, Any] = {}

    def begin(self, run: LoggedRun, history: Sequence[EpochRecord]) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        self.end(run.id, "interrupted")
        self._runs[run.id] = self._init(
            id=run.id, name=run.name, group=run.pair, job_type="run", config=dict(run.config), resume="allow"
        )
        for step, record in enumerate(history, 1):
            self.epoch(run.id, step, record)

    def epoch(self, run: str, step: int, record: EpochRecord) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        if step >= self._runs[run].step:  # else the server has it
            self._runs[run].log(scalars(record), step=step, commit=True)

    def end(self, run: str, how: Ending) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        if run in self._runs:
            self._runs.pop(run).finish(exit_code=0 if how == "done" else 1)

    def table(self, markdown: str) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        run = self._init(name="table", job_type="table")
        run.summary["table"] = markdown
        run.finish()

    def _init(self, **about: Any) -> Any:
        """Start a run beside those that are open: a cohort's runs are logged at once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", disable_git=True)  # the store has the code's hash
        if self._mode is None:
            wandb.setup(settings)
            self._mode = _mode()
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kdtable"),
            dir=os.environ.get("WANDB_DIR", str(self._folder)),
            mode=self._mode,
            reinit="create_new",
            settings=settings,
            **about,
        )


def _mode() -> str:
    """The user's own mode; else online where that needs no question and no waiting."""
    chosen = os.environ.get("WANDB_MODE", "online")
    if chosen != "online":
        return chosen
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.errors.AuthenticationError:  # a key that is not accepted, or a server that cannot be reached
        return "offline"
