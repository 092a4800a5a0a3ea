"""``kdtable status --watch``: who trains what, what failed, and when it is expected to end."""

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.cli.console import duration, shown
from kdtable.cli.states import count_words

if TYPE_CHECKING:
    from kdtable.store.activity import Activity
    from kdtable.store.overview import Overview
    from kdtable.store.records import RunRecord

#: Most workers, and most reasons, that are listed; the rest is counted.
WORKERS: Final = 30
REASONS: Final = 5


def watch(results: Path, store: str | None) -> None:
    """Draw the store's activity again and again, until Ctrl-C; it then stays on the terminal.

    Raises:
        BadRequest: there is no store, or it cannot be read.
    """
    from kdtable.report.output import watched

    watched(lambda: activity_text(results, store))


def activity_text(results: Path, store: str | None) -> str:
    """The activity of a store as text for a terminal."""
    from kdtable.store import Store
    from kdtable.store.activity import activity
    from kdtable.store.overview import overview

    with closing(Store(results, store, create=False)) as opened:
        found, counted = activity(opened), overview(opened, 0)
    console = Console()
    with console.capture() as captured:
        _print(console, counted, found)
    return captured.get()


def _print(console: Console, counts: "Overview", found: "Activity") -> None:
    console.print(Text(f"{count_words(counts.counts)}{_end_words(found)}"))
    table = Table("worker", "seen (UTC)", "trains", "epoch")
    for column in table.columns:
        column.overflow = "fold"
    for trainer, runs in list(found.training.items())[:WORKERS]:
        seen = trainer.seen.partition("T")[2].partition("+")[0]
        table.add_row(f"{trainer.host}:{trainer.pid}", seen, *map(shown, _training_words(runs)))
    if table.row_count:
        console.print(table)
    if (more := len(found.training) - WORKERS) > 0:
        console.print(f"... and {more:,} more workers")
    for reason, count in list(found.failures.items())[:REASONS]:
        console.print(shown(f"{count:,} failed: {reason}"))
    if (more := len(found.failures) - REASONS) > 0:
        console.print(f"... and {more:,} more reasons")


def _training_words(runs: "Sequence[RunRecord]") -> tuple[str, str]:
    """What a worker trains, and how far its runs are."""
    if not runs:
        return "waits", ""
    rows = ", ".join(dict.fromkeys(run.row for run in runs))
    pairs = ", ".join(dict.fromkeys(f"{run.teacher or 'none'}:{run.student}" for run in runs))
    seeds = ", ".join(dict.fromkeys(str(run.seed) for run in runs))
    reached = [run.last_epoch for run in runs]
    span = f"{min(reached)}" if min(reached) == max(reached) else f"{min(reached)}-{max(reached)}"
    return f"{rows} on {pairs}, seed {seeds}", f"{span}/{max(run.epochs for run in runs)}"


def _end_words(found: "Activity") -> str:
    seconds = found.seconds_left()
    if seconds is None:
        return ""
    end = datetime.now().astimezone() + timedelta(seconds=seconds)
    day = "" if end.date() == datetime.now().astimezone().date() else f"{end:%Y-%m-%d} "
    return f"; about {duration(seconds)} left, until {day}{end:%H:%M}, if the workers go on like this"
