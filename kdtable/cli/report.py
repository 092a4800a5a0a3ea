"""``kdtable report``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtable.cli import completion
from kdtable.cli import options as opt
from kdtable.errors import BadRequest, unknown
from kdtable.planning.cohorts import PlannedRun

if TYPE_CHECKING:
    from kdtable.report.comparison import Comparison


def report(
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="terminal, markdown, csv or json.")
    ] = "terminal",
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
        typer.Option(metavar="NAME", help="last, best or lowest-loss; by default the table's rule, else last."),
    ] = None,
    by_seed: Annotated[
        bool, typer.Option("--by-seed", help="Every seed, and paired differences from the plain student.")
    ] = False,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
) -> None:
    """Print tables of the results: mean ± standard deviation over seeds.

    It can be called while a grid is running.

    Example: kdtable report --table crd-1 --compare --format markdown
    """
    from kdtable.papers import find_table
    from kdtable.recipes.metrics import EPOCHS, METRICS, parse_metrics
    from kdtable.report.render import FORMATS, render, render_seeds
    from kdtable.report.tables import comparison_table, fits_paper, paper_table

    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if epoch is not None and epoch not in EPOCHS:
        raise BadRequest(f"--epoch is one of {', '.join(EPOCHS)}, not '{epoch}'")
    if by_seed and form in ("csv", "json"):
        raise BadRequest(f"every seed stands in --format {form} already: leave out --by-seed")
    if compare and table is None:
        raise BadRequest("--compare needs the published table to compare with: add --table crd-1")
    paper, published = (None, None) if table is None else find_table(table)
    rule = epoch or (published.epoch if published else "last")
    found = _comparisons(results, store, rule)
    known = {one.name: one for comparison in found for one in comparison.metrics}
    metrics = () if metric is None else parse_metrics(metric, known or METRICS)
    if paper is None or published is None:
        if not found:
            raise BadRequest(f"the store in {results} holds no run yet: start with 'kdtable run'")
        result_tables = [comparison_table(comparison, rule, metrics) for comparison in found]
    else:
        metrics = metrics or tuple(METRICS[name] for name in published.metrics)
        if compare and not any(map(published.printed_as, metrics)):
            raise BadRequest(f"table {table} has no published numbers of {metric}: leave out --compare or --metric")
        found = [comparison for comparison in found if fits_paper(comparison, paper, published)]
        shown: list[Comparison | None] = [*found] or [None]
        result_tables = [
            paper_table(paper, published, comparison, rule, compare=compare, metrics=metrics) for comparison in shown
        ]
    typer.echo(render_seeds(found, rule, metrics) if by_seed else render(result_tables, form))


def print_planned(planned_runs: "Sequence[PlannedRun]", results: Path, store: str | None = None) -> None:
    """Print a table for each data set of ``planned_runs``, with epoch rule and metrics of their paper's tables."""
    from kdtable import papers
    from kdtable.recipes.metrics import METRICS
    from kdtable.report.render import render
    from kdtable.report.tables import comparison_table

    ids = {planned.run.id for planned in planned_runs}
    kinds = {planned.run.data.kind for planned in planned_runs}
    tables = [table for table in papers.load(planned_runs[0].paper).tables.values() if table.data in kinds]
    rules = {(table.epoch, table.metrics) for table in tables}
    epoch, names = rules.pop() if len(rules) == 1 else ("last", ())
    metrics = [METRICS[name] for name in names]
    found = _comparisons(results, store, epoch, only=ids)
    typer.echo(render([comparison_table(comparison, epoch, metrics) for comparison in found], "terminal"))


def _comparisons(results: Path, url: str | None, epoch: str, only: set[str] | None = None) -> "list[Comparison]":
    from kdtable import papers
    from kdtable.report.aggregate import comparisons
    from kdtable.store import Store
    from kdtable.store.results import uncollected

    store = Store(results, url, create=False)
    with uncollected():
        return comparisons(store.runs(only), store.teacher_accuracies(), papers.defaults, epoch)
