"""``kdtable show``."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kdtable.cli import options as opt
from kdtable.cli.console import print_line, print_table, shown
from kdtable.escaping import printable

if TYPE_CHECKING:
    from kdtable.report.details import Curve, Section


def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|TABLE:ROW:COLUMN",
            help="A run's id or the beginning of one ('kdtable status' has them), or a cell.",
        ),
    ],
    curves: Annotated[bool, typer.Option("--curves", help="Losses and metrics over the epochs too.")] = False,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
) -> None:
    """Show all that is known of a run, or of each run of a table's cell.

    State, the command that makes it, recipe, objective, teacher, metrics, environment, warnings. A cell's table is a
    published one or a data set, its column a pair or a student.

    Example: kdtable show crd-1:kd:resnet56:resnet20 --curves
    """
    from kdtable.report.details import details
    from kdtable.report.lookup import find_runs
    from kdtable.store import Store

    opened = Store(results, store, create=False)
    # Read everything before printing, so that a damaged store prints no partial answer.
    found = [details(opened, run.id) for run in find_runs(opened.runs(), what)]
    for number, one in enumerate(found):
        if number:
            print_line("")
        for section in one.sections:
            _print_section(section)
        if curves:
            _print_curves(one.curves)


def _print_section(section: "Section") -> None:
    print_line(section.title, bold=True)
    table = Table.grid(padding=(0, 2))
    for label, text in section.lines:
        if label:
            table.add_row(*map(shown, (f"  {label}", text)))
        else:
            typer.echo(f"  {printable(text)}")  # one line, so that a command can be copied
    if table.row_count:
        print_table(table)


def _print_curves(curves: "tuple[Curve, ...]") -> None:
    from kdtable.report.sparklines import sparkline

    print_line("Curves", bold=True)
    if not curves:
        print_line("  No epoch is finished yet.")
        return
    table = Table("stage", "curve", "epochs", "", "first", "last", "lowest", "highest", box=None, padding=(0, 1))
    for curve in curves:
        values = curve.values
        numbers = [f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values))]
        name = curve.name if curve.name == curve.kind else f"{curve.kind} {curve.name}"
        table.add_row(*map(shown, (curve.stage, name, len(values), sparkline(values), *numbers)))
    print_table(table)
