"""TensorBoard's event files (extra ``[tensorboard]``), a folder per run."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from kdtable.execution.loggers.base import Ending, LoggedRun, scalars
from kdtable.recipes.record import EpochRecord


class TensorBoard:
    """Writes event files: ``tensorboard --logdir results/logs/tensorboard`` shows them.

    A run that goes on is written again from its first epoch, and TensorBoard drops the older points (``purge_step``).
    So it has every epoch of the store once, also those that a killed process stored but had not logged.

    Args:
        folder: of all logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}

    def begin(self, run: LoggedRun, history: Sequence[EpochRecord]) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        self.end(run.id)
        writer = self._writers[run.id] = self._open(run.id)
        writer.add_text("run", _as_code({"name": run.name, **run.config}), 0)
        moment = time.time() - sum(record.seconds for record in history)
        for step, record in enumerate(history, 1):
            moment += record.seconds  # epochs of an earlier command: as if it had just ended
            _add(writer, step, record, moment)
        writer.flush()

    def epoch(self, run: str, step: int, record: EpochRecord) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        _add(self._writers[run], step, record)
        self._writers[run].flush()

    def end(self, run: str, how: Ending = "done") -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        if writer := self._writers.pop(run, None):
            writer.close()

    def table(self, markdown: str) -> None:
        """See :class:`~kdtable.execution.loggers.base.Logger`."""
        with self._open("table") as writer:
            writer.add_text("table", markdown, 0)

    def _open(self, name: str) -> SummaryWriter:
        """A writer that replaces what earlier ones wrote."""
        return SummaryWriter(str(self._folder / name), purge_step=0)


def _add(writer: SummaryWriter, step: int, record: EpochRecord, moment: float | None = None) -> None:
    for name, value in scalars(record).items():
        writer.add_scalar(name, value, step, walltime=moment)


def _as_code(config: dict[str, object]) -> str:
    """A mapping as Markdown that keeps its lines."""
    return "\n".join(f"    {line}" for line in json.dumps(config, indent=2).splitlines())
