"""``kdtable list``."""

from typing import Annotated, Any, Final, Literal

import typer
from rich.table import Table

from kdtable.cli.console import print_table, shown
from kdtable.errors import BadRequest, unknown
from kdtable.escaping import json_text

#: Columns of texts up to this length do not wrap, so that names can be copied from a narrow terminal.
SHORT: Final = 28


def list_(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="pairs, methods, papers, models, datasets or tables.")],
    paper: Annotated[str | None, typer.Option(metavar="NAME", help="Only what is of this paper.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only pairs and tables of this data set; methods as they are on it."),
    ] = None,
    form: Annotated[Literal["terminal", "json"], typer.Option("--format")] = "terminal",
) -> None:
    """List what can be named on the command line, and of methods all that they are trained with.

    Example: kdtable list methods --paper reviewkd
    """
    from kdtable import papers
    from kdtable.cli.rows import print_kinds, print_methods
    from kdtable.papers.lists import LISTS, OF_DATA, OF_PAPERS, kind_of

    if what not in LISTS:
        raise unknown("list", what, LISTS)
    for option, value, lists in (("--paper", paper, OF_PAPERS), ("--data", data, OF_DATA)):
        if value is not None and what not in lists:
            raise BadRequest(f"{option} goes with the lists {', '.join(lists)}: leave it out")
    chosen = [papers.load(name) for name in ([paper] if paper is not None else papers.names())]
    kind = None if data is None else kind_of(data)
    if what == "methods" and form == "terminal":
        if paper is None:
            print_kinds()
        print_methods(chosen, kind)
        return
    rows = LISTS[what](chosen, kind)
    if form == "json":
        typer.echo(json_text(rows))
    elif not rows:
        raise BadRequest(f"there are no {what} of what was asked for: leave out --paper or --data")
    else:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*(shown(_text(value)) for value in row.values()))
        for column, name in zip(table.columns, rows[0], strict=True):
            column.no_wrap = max(len(_text(row[name])) for row in rows) <= SHORT
        print_table(table)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
