"""Show the progress of a grid on stderr: a live display on a terminal, plain lines elsewhere."""

import io
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Final, Self, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from kdtable import tasks
from kdtable.cli.students import Student, Students
from kdtable.errors import counted
from kdtable.escaping import printable
from kdtable.execution import progress as events
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord

#: Lines of a terminal that the list of students leaves free: the bar, the heading, and some for what is said above.
ABOVE: Final = 6
#: Smallest fraction of an epoch's time that is reported as waiting for images.
WORTH_TELLING: Final = 0.01


class Lasting(io.TextIOBase):
    """stderr without write errors.

    A grid must not end because the disk of its log is full or its terminal is gone; the store has all results.
    """

    encoding = property(lambda self: self._stream.encoding)

    def __init__(self) -> None:
        self._stream = sys.stderr  # kept here, since a live display replaces sys.stderr

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's file descriptor."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write, or drop the text if that fails."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop the buffered text if that fails."""
        with suppress(OSError):
            self._stream.flush()


class GridDisplay(events.Progress):
    """Displays the grid's progress: on a terminal where it is and how each student does, else a line an epoch."""

    def __init__(self) -> None:
        self._console = Console(file=cast(IO[str], Lasting()), highlight=False, soft_wrap=True)
        self._on_terminal = self._console.is_terminal
        self._bar = Progress(
            SpinnerColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(None, table_column=Column(max_width=40)),  # the only one that shrinks on a narrow terminal
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            TextColumn("left", table_column=Column(no_wrap=True)),
            console=self._console,
            auto_refresh=False,
        )
        self._students = Students()
        self._task: TaskID | None = None
        self._images = 0
        self._trained: defaultdict[str, int] = defaultdict(int)  # number of trained images by run id
        self._since = time.perf_counter()
        self._begun = 0
        self._waited = ""
        self._labels: dict[str, str] = {}  # label of the cohort by run id
        self._live = Live(
            get_renderable=self._picture, console=self._console, refresh_per_second=10
        )  # last: it draws at once

    def __enter__(self) -> Self:
        if self._on_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _picture(self) -> RenderableType:
        lines = [Text(f"  {self._waited}")] if self._waited else []
        students = [self._students.table(self._console.height - ABOVE)] if self._students else []
        return Group(self._bar, *lines, *students)

    def started(self, images: int) -> None:
        """Begin a grid of so many images."""
        self._task = self._bar.add_task("grid", total=images, completed=sum(self._trained.values()), rate="")
        self._since = time.perf_counter()

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """Begin a cohort; ``left`` more cohorts are unclaimed."""
        self._begun += 1
        label = f"cohort {self._begun}/{self._begun + left}"
        self._labels |= {run.id: label for run in runs}
        with_teacher = f" with teacher {teacher}" if teacher else ""
        students = ", ".join(dict.fromkeys(run.student for run in runs))
        rows = ", ".join(dict.fromkeys(run.row for run in runs))
        self._say(f"{label}: seed {runs[0].seed}, {counted(len(runs), 'run')} of {students}{with_teacher}: {rows}")
        self._students.begin(runs, self._trained)
        self._describe(self._students.of(runs[0].id))

    def stepped(self, runs: Sequence[str], images: int) -> None:
        """Add so many trained images to each run of these ids."""
        self._images += images * len(runs)
        for run in runs:
            self._trained[run] += images
        if self._task is not None and self._on_terminal:
            self._bar.update(self._task, advance=images * len(runs), rate=self._rate())

    def reached(self, run: str, images: int) -> None:
        """Set a run's progress in images, overriding earlier events."""
        more = images - self._trained[run]
        self._trained[run] = images
        if self._task is not None:
            self._bar.update(self._task, advance=more)
        if student := self._students.reached(run, images):
            self._describe(student)

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """Show a finished epoch."""
        if self._on_terminal:
            self._waited = _waiting(record, "the last epoch")
            self._describe(self._students.finished(run, record))
            return
        total = run.stage_epochs[record.stage]
        rate = ", ".join(filter(None, (self._rate(), _waiting(record, "it"))))
        self._say(
            f"{self._labels[run.id]} {run.student} {run.row} seed {run.seed} {record.stage} epoch {record.epoch}"
            f"/{total}: loss {record.train_loss:.4f}{_measured(run, record)} ({rate})"
        )

    def _describe(self, student: Student) -> None:
        """Say beside the bar where a student's cohort is."""
        if self._task is not None:
            self._bar.update(self._task, description=f"{self._labels[student.run.id]} {student.place()}")

    def failed(self, run: Run, reason: str) -> None:
        """Show that a run failed."""
        self._students.drop(run.id)
        self._say(f"FAILED {run.student} {run.row} seed {run.seed}: {reason}")

    def note(self, text: str) -> None:
        """Show a message."""
        self._say(text)

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """Show that all remaining runs are training in these other processes."""
        what = f"{counted(runs, 'run')} {'is' if runs == 1 else 'are'} being trained"
        self._say(f"{what} on {', '.join(where)}: waiting for them")

    def _rate(self) -> str:
        return f"{self._images / max(time.perf_counter() - self._since, 1e-9):,.0f} images/s"

    def _say(self, text: str) -> None:
        self._console.print(escape(printable(text)))


def _measured(run: Run, record: EpochRecord) -> str:
    """The first metric of the run's task that the epoch has, in words; empty for a stage of another task."""
    of = "validation" if run.data.validation else "test"
    for metric in tasks.get(run.task).metrics:
        if (value := metric.watched(record.metrics)) is not None:
            return f", {of} {metric.words} {metric.shown(value):.2f} {metric.unit}".rstrip()
    return ""


def _waiting(record: EpochRecord, epoch: str) -> str:
    """The fraction of ``epoch`` spent waiting for images in words; empty if it is small."""
    fraction = record.waited / max(record.seconds, 1e-9)
    return f"{100 * fraction:.0f} % of {epoch} waiting for images" if fraction >= WORTH_TELLING else ""
