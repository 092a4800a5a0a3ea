"""``kdtable report``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtable.cli import completion
from kdtable.cli import options as opt
from kdtable.garbage import uncollected

if TYPE_CHECKING:
    from kdtable.planning.cohorts import PlannedRun


def report(
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="terminal, markdown, csv, json, latex or html.")
    ] = "terminal",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write it to a file, which is replaced only when it is whole."
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.one_of(completion.tables),
            help="A published table, such as crd-1 (kdtable list tables); by default all that was run.",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="With --table: print the paper's number and the difference.")
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What to show of what the runs measured, such as top1, top5, top1-error or several with commas; "
            "by default the table's, else the main one.",
        ),
    ] = None,
    epoch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="last, best, lowest-loss or validation (of runs with --validation); by default each table's own.",
        ),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option(
            metavar="ROW",
            help="The row that arrows and differences are against: kd (by default), vanilla (with --by-seed) or any.",
        ),
    ] = None,
    by_seed: Annotated[
        bool, typer.Option("--by-seed", help="Every seed, and paired differences from the row --versus.")
    ] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="With --format csv: the table's shape in place of a line per run.")
    ] = False,
    checklist: Annotated[
        bool, typer.Option("--checklist", help="What varies, how many runs and how much compute, for a checklist.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Draw it again and again, until Ctrl-C.")] = False,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
) -> None:
    """Print tables of the results: mean ± standard deviation over seeds.

    It can be called while a grid is running.

    Example: kdtable report --table crd-1 --compare --format latex -o table.tex
    """
    with uncollected(last=not watch):
        from kdtable.report import asked
        from kdtable.report.output import watched, written

        request = asked.Asked(
            results, store, form, table, metric, epoch, versus, compare=compare, by_seed=by_seed, wide=wide,
            checklist=checklist,
        )  # fmt: skip
        asked.check(request, to_file=output is not None, watch=watch)
        if not watch:
            written(asked.text_of(request), output)
            return
    watched(lambda: asked.text_of(request))


def print_planned(planned_runs: "Sequence[PlannedRun]", results: Path, store: str | None = None) -> None:
    """Print a table for each data set of ``planned_runs``."""
    typer.echo(planned_text(planned_runs, results, store))


def planned_text(
    planned_runs: "Sequence[PlannedRun]", results: Path, store: str | None = None, form: str = "terminal"
) -> str:
    """A table for each data set of ``planned_runs``, with epoch rule and metrics of their paper's tables."""
    from kdtable.report.asked import text_of_runs

    ids = {planned.run.id for planned in planned_runs}
    kinds = {planned.run.data.kind for planned in planned_runs}
    return text_of_runs(ids, kinds, planned_runs[0].paper, results, store, form)
