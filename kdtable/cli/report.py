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
            help="top1, top5, top1-error, top5-error, or several with commas; by default the table's, else top1.",
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
    from kdtable.recipes.metrics import EPOCHS, parse_metrics
    from kdtable.report.render import FORMATS, render, render_seeds
    from kdtable.report.tables import USUAL, comparison_table, fits_paper, paper_table

    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if epoch is not None and epoch not in EPOCHS:
        raise BadRequest(f"--epoch is one of {', '.join(EPOCHS)}, not '{epoch}'")
    asked = None if metric is None else parse_metrics(metric)
    if by_seed and form in ("csv", "json"):
        raise BadRequest(f"every seed stands in --format {form} already: leave out --by-seed")
    if compare and table is None:
        raise BadRequest("--compare needs the published table to compare with: add --table crd-1")
    if table is None:
        rule, metrics = epoch or "last", asked or USUAL
        found = _comparisons(results, store, rule)
        if not found:
            raise BadRequest(f"the store in {results} holds no run yet: start with 'kdtable run'")
        result_tables = [comparison_table(comparison, rule, metrics) for comparison in found]
    else:
        paper, published = find_table(table)
        rule, metrics = epoch or published.epoch, asked or published.metrics
        if compare and not any(map(published.printed_as, metrics)):
            raise BadRequest(f"table {table} has no published numbers of {metric}: leave out --compare or --metric")
        found = [
            comparison for comparison in _comparisons(results, store, rule) if fits_paper(comparison, paper, published)
        ]
        shown: list[Comparison | None] = [*found] or [None]
        result_tables = [
            paper_table(paper, published, comparison, rule, compare=compare, metrics=metrics) for comparison in shown
        ]
    typer.echo(render_seeds(found, rule, metrics) if by_seed else render(result_tables, form))


def print_planned(planned_runs: "Sequence[PlannedRun]", results: Path, store: str | None = None) -> None:
    """Print the table of the data sets that ``cells`` belong to, by the rule of their paper's tables on these."""
    from kdtable import papers
    from kdtable.report.render import render
    from kdtable.report.tables import comparison_table

    asked = {planned.run.id for planned in planned_runs}
    kinds = {planned.run.data.kind for planned in planned_runs}
    tables = [table for table in papers.load(planned_runs[0].paper).tables.values() if table.data in kinds]
    rules = {(table.epoch, table.metrics) for table in tables}
    epoch, metrics = rules.pop() if len(rules) == 1 else ("last", ("top1",))
    found = _comparisons(results, store, epoch, only=asked)
    typer.echo(render([comparison_table(comparison, epoch, metrics) for comparison in found], "terminal"))


def _comparisons(results: Path, url: str | None, epoch: str, only: set[str] | None = None) -> "list[Comparison]":
    from kdtable import papers
    from kdtable.report.aggregate import comparisons
    from kdtable.store import Store
    from kdtable.store.results import uncollected

    store = Store(results, url, create=False, scanned=only is None)
    with uncollected():
        return comparisons(store.tabled_runs(only), store.teacher_accuracies(), papers.defaults, epoch)
