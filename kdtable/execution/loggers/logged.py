"""A display whose runs are logged too."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from kdtable.execution.loggers.base import Ending, LoggedRun, Logger
from kdtable.execution.progress import Progress
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord
from kdtable.store import Store


class Logged(Progress):
    """Passes progress to a display, and the epochs of the runs that this command trains to loggers.

    Workers report to the process with the display, so that process alone logs, also with ``--jobs``. The numbers come
    from the store: a worker that is killed may have stored an epoch without reporting it. A logger that fails is
    switched off with a note.

    Example:
        with GridDisplay() as display, Logged(display, loggers, planned_runs, results) as progress:
            execute(planned_runs, results, progress=progress, ...)

    Args:
        display: receives every event.
        loggers: by name.
        planned_runs: the request.
        results: folder of the store.
        url: URL of the store's database, if it is not in the folder.
    """

    def __init__(
        self,
        display: Progress,
        loggers: Mapping[str, Logger],
        planned_runs: Sequence[PlannedRun],
        results: Path,
        url: str | None = None,
    ) -> None:
        self._display = display
        self._loggers = dict(loggers)
        self._planned = {planned.run.id: planned for planned in reversed(planned_runs)}  # the first pair of each run
        self._results = results
        self._url = url
        self._training: set[str] = set()  # ids of runs in training
        self._steps: dict[str, int] = {}  # number of logged epochs of each run that has begun in the logs
        self.trained = False

    @cached_property
    def _store(self) -> Store:
        return Store(self._results, self._url, create=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in sorted(self._training):
            self._end(run, "interrupted")
        if "_store" in self.__dict__:
            self._store.close()

    def table(self, render: Callable[[], str]) -> None:
        """Log the grid's table, if this command trained any run."""
        if self.trained:
            self._each(lambda logger: logger.table(render()))

    def started(self, images: int) -> None:
        """See :class:`Progress`."""
        self._display.started(images)

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """See :class:`Progress`; these runs are logged from now on."""
        self._display.cohort(left, runs, teacher)
        self.trained = True
        self._training |= {run.id for run in runs}

    def stepped(self, runs: Sequence[str], images: int) -> None:
        """See :class:`Progress`."""
        self._display.stepped(runs, images)

    def reached(self, run: str, images: int) -> None:
        """See :class:`Progress`; a run that went back to an older checkpoint begins anew in the logs."""
        self._display.reached(run, images)
        if run in self._steps and images // self._planned[run].run.data.train_count < self._steps[run]:
            del self._steps[run]

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """See :class:`Progress`."""
        self._display.epoch(run, record)
        self._log(run.id)

    def failed(self, run: Run, reason: str) -> None:
        """See :class:`Progress`."""
        self._display.failed(run, reason)
        self._end(run.id, "failed")

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self._display.note(text)

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """See :class:`Progress`."""
        self._display.waiting(runs, where)

    def _log(self, run: str) -> None:
        """Log the epochs that the store has and the logs have not."""
        history = self._history(run) if run in self._training else ()
        if not history:
            return
        logged = self._steps.get(run)
        if logged is None:
            shown = LoggedRun.of(self._planned[run])
            self._each(lambda logger: logger.begin(shown, history))
        else:
            self._each(lambda logger: _add(logger, run, history, logged))
        self._steps[run] = len(history)
        if len(history) == self._planned[run].run.total_epochs:
            self._close(run, "done")

    def _end(self, run: str, how: Ending) -> None:
        """Log what is left of a run, and end it."""
        self._log(run)
        self._close(run, how)

    def _close(self, run: str, how: Ending) -> None:
        self._training.discard(run)
        if self._steps.pop(run, None) is not None:
            self._each(lambda logger: logger.end(run, how))

    def _history(self, run: str) -> Sequence[EpochRecord]:
        """The epochs of a run in the store; if they cannot be read, logging ends."""
        try:
            return self._store.history(run) if self._loggers else ()
        except Exception as error:
            for name in list(self._loggers):
                self._switch_off(name, error)
            return ()

    def _each(self, log: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                log(logger)
            except Exception as error:  # of any kind: it is another package's
                self._switch_off(name, error)

    def _switch_off(self, name: str, error: Exception) -> None:
        del self._loggers[name]
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        self._display.note(f"logging to {name} failed and is off from here on, while training goes on: {reason}")


def _add(logger: Logger, run: str, history: Sequence[EpochRecord], logged: int) -> None:
    """Log the epochs of a history behind the first ``logged``."""
    for step, record in enumerate(history[logged:], logged + 1):
        logger.epoch(run, step, record)
