"""``kdtable status``."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.cli import options as opt
from kdtable.cli.console import print_table, shown
from kdtable.cli.states import WORDS, count_words
from kdtable.errors import counted
from kdtable.garbage import uncollected

if TYPE_CHECKING:
    from kdtable.store.overview import Made, Unfinished

#: Most runs that are listed; the rest is counted.
LISTED: Final = 50
#: Most warnings that are printed, those of most runs first; and most runs that a warning names.
WARNINGS: Final = 20
NAMED: Final = 3


def status(
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show who trains what and when it will end, again and again until Ctrl-C.")
    ] = False,
) -> None:
    """Show what the store holds: done, running, failed with reasons, and missing runs.

    Missing are the runs that were asked for and are not trained yet; interrupted are those whose process died, which
    the next 'kdtable run' continues.

    Example: kdtable status --results results
    """
    if watch:
        from kdtable.cli.watch import watch as draw

        draw(results, store)
        return
    with uncollected(last=True):
        _print_status(results, store)


def _print_status(results: Path, store: str | None) -> None:
    from kdtable.report.plugged import lines as plugin_lines
    from kdtable.report.warnings import measured, with_warnings
    from kdtable.store import Store
    from kdtable.store.overview import overview
    from kdtable.store.shown import judged_runs

    # Read everything before printing, so that a damaged store prints no partial status.
    with closing(Store(results, store, create=False)) as opened:
        found = overview(opened, LISTED)
        judged = judged_runs(opened)
        warnings = with_warnings(judged, measured(opened.teacher_accuracies()))
        stale = _stale(found.made, opened.code_files(found.sources))
    console = Console()
    console.print(Text(count_words(found.counts)))
    last = _last(one.run.protocol.main.words for one in found.shown)
    table = Table("run", "data", "teacher", "student", "row", "seed", "status", "epoch", last, "reason")
    for run in found.shown:
        table.add_row(*map(shown, _values(run)))
    if table.row_count:
        print_table(table)
    if found.hidden:
        console.print(f"... and {found.hidden:,} more")
    for line in plugin_lines(judged):
        console.print(shown(line))
    for text, runs in sorted(warnings.items(), key=lambda warning: -len(warning[1]))[:WARNINGS]:
        console.print(shown(f"{_named(runs)}: {text}"))
    if len(warnings) > WARNINGS:
        console.print(f"... and {len(warnings) - WARNINGS:,} more warnings")
    if stale:
        console.print(shown(f"{stale}: 'kdtable run --retrain' trains them again"))
    if found.older:
        kept = f"{counted(found.older, 'older result')} {'is' if found.older == 1 else 'are'} kept"
        console.print(f"{kept}: 'kdtable show RUN' lists a run's, 'kdtable store remove --older' removes them")


def _stale(made: "Sequence[Made]", code: Mapping[str, Mapping[str, str]]) -> str | None:
    """The finished runs that were made by another method, network or step, in a clause."""
    from kdtable.planning.code import changed_files, made_otherwise
    from kdtable.provenance import source_hash

    others = [one for one in made if set(one.sources) - {source_hash()}]
    changed = [(one, files) for one in others if (files := changed_files(one.protocol.identity, one.sources, code))]
    if not changed:
        return None
    every = {file for _, files in changed for file in files}
    return made_otherwise(sum(one.runs for one, _ in changed), (one.row for one, _ in changed), every)


def _last(words: Iterable[str]) -> str:
    """Heading of the main metrics of the last epoch: ``last top-1 or AP``."""
    return f"last {' or '.join(dict.fromkeys(one.removesuffix(' accuracy') for one in words))}"


def _named(runs: Sequence[str]) -> str:
    """Runs by id if they are few, else their number."""
    if len(runs) > NAMED:
        return f"{len(runs):,} runs"
    return f"{'runs' if len(runs) > 1 else 'run'} {', '.join(runs)}"


def _values(unfinished: "Unfinished") -> list[str]:
    run, state = unfinished.run, WORDS[unfinished.state]
    if unfinished.state == "running" and (trainer := unfinished.trainer):
        state += f" on {trainer.host} (process {trainer.pid}, seen {trainer.seen})"
    main, last = run.protocol.main, run.metrics_of("last") or {}
    reached = "" if (value := main.watched(last)) is None else f"{main.shown(value):.2f}"
    named = [run.id, run.data, run.teacher or "", run.student, run.row, str(run.seed)]
    return [*named, state, f"{run.last_epoch}/{run.epochs}", reached, run.reason or ""]
