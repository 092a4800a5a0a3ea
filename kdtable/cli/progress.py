"""What a user sees while a grid trains: a live display on a terminal, plain lines elsewhere. All on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

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

from kdtable.runs import Run
from kdtable.training.member import EpochRecord


class GridDisplay:
    """Grid, current cohort, epoch, images per second and time left."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
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
        self._since = time.perf_counter()
        self._cohort = ""

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

    def cohort(self, number: int, total: int, runs: list[Run], teacher: str | None) -> None:
        """A cohort begins."""
        self._cohort = f"cohort {number}/{total}"
        taught = f" taught by {teacher}" if teacher else ""
        students = ", ".join(dict.fromkeys(run.student for run in runs))
        rows = ", ".join(dict.fromkeys(run.row for run in runs))
        self._say(f"{self._cohort}: seed {runs[0].seed}, {len(runs)} runs of {students}{taught}: {rows}")

    def stepped(self, images: int) -> None:
        """So many student images were trained on."""
        self._images += images
        if self._task is not None and self._live:
            self._bar.update(self._task, advance=images, rate=self._rate())

    def resumed(self, images: int) -> None:
        """So many student images need not be trained on, since a checkpoint has them behind it."""
        if self._task is not None:
            self._bar.update(self._task, advance=images)

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """A run finished an epoch."""
        total = run.stage_epochs.get(record.stage, run.recipe.epochs)
        if self._task is not None and self._live:
            stage = "" if record.stage == "main" else f" {record.stage}"
            self._bar.update(self._task, description=f"{self._cohort}{stage} epoch {record.epoch}/{total}")
            return
        self._say(
            f"{self._cohort} {run.student} {run.row} seed {run.seed} {record.stage} epoch {record.epoch}"
            f"/{total}: loss {record.train_loss:.4f}, test top-1 {100 * record.test_top1:.2f} % "
            f"({self._rate()})"
        )

    def failed(self, run: Run, reason: str) -> None:
        """A run failed."""
        self._say(f"FAILED {run.student} {run.row} seed {run.seed}: {reason}")

    def note(self, text: str) -> None:
        """Something that the user should read."""
        self._say(text)

    def _rate(self) -> str:
        return f"{self._images / max(time.perf_counter() - self._since, 1e-9):,.0f} images/s"

    def _say(self, text: str) -> None:
        self._console.print(escape(text))
