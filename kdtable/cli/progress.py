"""What a user sees while a grid trains: a live display on a terminal, plain lines elsewhere. All on stderr."""

import io
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Final, Self, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kdtable import tasks
from kdtable.escaping import printable
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord

#: Share of an epoch.
WORTH_TELLING: Final = 0.01


class Lasting(io.TextIOBase):
    """stderr, for as long as it can be written to.

    A grid does not end because the disk that its log goes to is full, or its terminal is gone; the store has it all.
    """

    encoding = property(lambda self: self._stream.encoding)

    def __init__(self) -> None:
        self._stream = sys.stderr  # which a live display replaces by one that writes to this

    def isatty(self) -> bool:
        """Whether somebody sees it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write, or drop what cannot be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is still held, or drop it."""
        with suppress(OSError):
            self._stream.flush()


class GridDisplay:
    """Grid, current cohort, epoch, images per second and time left."""

    def __init__(self) -> None:
        self._console = Console(file=cast(IO[str], Lasting()), highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._images = 0
        self._behind: defaultdict[str, int] = defaultdict(int)  # images that each run was trained on
        self._since = time.perf_counter()
        self._begun = 0
        self._labels: dict[str, str] = {}  # of the cohort of each run

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def started(self, images: int) -> None:
        """Training begins."""
        self._task = self._bar.add_task("grid", total=images, rate="")
        self._since = time.perf_counter()

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """A cohort begins; so many are left that nobody trains yet."""
        self._begun += 1
        label = f"cohort {self._begun}/{self._begun + left}"
        self._labels |= {run.id: label for run in runs}
        taught = f" taught by {teacher}" if teacher else ""
        students = ", ".join(dict.fromkeys(run.student for run in runs))
        rows = ", ".join(dict.fromkeys(run.row for run in runs))
        self._say(f"{label}: seed {runs[0].seed}, {len(runs)} runs of {students}{taught}: {rows}")

    def stepped(self, runs: Sequence[str], images: int) -> None:
        """Each run of these ids was trained on so many images."""
        self._images += images * len(runs)
        for run in runs:
            self._behind[run] += images
        if self._task is not None and self._live:
            self._bar.update(self._task, advance=images * len(runs), rate=self._rate())

    def reached(self, run: str, images: int) -> None:
        """The run of this id has so many images behind it, whatever was told of it before."""
        more = images - self._behind[run]
        self._behind[run] = images
        if self._task is not None:
            self._bar.update(self._task, advance=more)

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """A run finished an epoch."""
        total = run.objective.stage_epochs.get(record.stage, run.recipe.epochs)
        if self._task is not None and self._live:
            stage = "" if record.stage == "main" else f" {record.stage}"
            where = f"{self._labels[run.id]}{stage} epoch {record.epoch}/{total}"
            self._bar.update(self._task, description=f"{where}{_waiting(record)}")
            return
        self._say(
            f"{self._labels[run.id]} {run.student} {run.row} seed {run.seed} {record.stage} epoch {record.epoch}"
            f"/{total}: loss {record.train_loss:.4f}{_measured(run, record)} ({self._rate()}{_waiting(record)})"
        )

    def failed(self, run: Run, reason: str) -> None:
        """A run failed."""
        self._say(f"FAILED {run.student} {run.row} seed {run.seed}: {reason}")

    def note(self, text: str) -> None:
        """Something that the user should read."""
        self._say(text)

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """All that is left are so many runs which others train, in these places."""
        self._say(f"{runs} runs are being trained on {', '.join(where)}: waiting for them")

    def _rate(self) -> str:
        return f"{self._images / max(time.perf_counter() - self._since, 1e-9):,.0f} images/s"

    def _say(self, text: str) -> None:
        self._console.print(escape(printable(text)))


def _measured(run: Run, record: EpochRecord) -> str:
    """The main metric of the run's task; a stage of another task has none."""
    main = tasks.get(run.task).metrics[0]
    value = record.metrics.get(main.stored)
    return "" if value is None else f", test {main.words} {main.shown(value):.2f} {main.unit}".rstrip()


def _waiting(record: EpochRecord) -> str:
    """Which share of an epoch passed in waiting for images, where that is worth a word."""
    share = record.waited / max(record.seconds, 1e-9)
    return f", {100 * share:.0f} % of it waiting for images" if share >= WORTH_TELLING else ""
