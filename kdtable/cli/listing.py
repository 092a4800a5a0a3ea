"""``kdtable list``."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from kdtable import models, papers
from kdtable.cli.console import print_table, shown
from kdtable.cli.rows import objects, print_methods
from kdtable.data.spec import BUILT_IN, STREAMED
from kdtable.errors import BadRequest, unknown
from kdtable.models.names import KINDS
from kdtable.report.escape import json_text

#: Columns of words up to this length are not broken in a narrow terminal: names of tables are what one types.
SHORT: Final = 28

Rows = list[dict[str, Any]]
Chosen = Sequence[papers.Paper]


def list_(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="pairs, methods, papers, models, datasets or tables.")],
    paper: Annotated[str | None, typer.Option(metavar="NAME", help="Only what is of this paper.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only pairs and tables of this data set; methods as they are on it."),
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="terminal or json.")] = "terminal",
) -> None:
    """List what can be named on the command line, and of methods all that they are trained with.

    Example: kdtable list methods --paper reviewkd
    """
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    if form not in ("terminal", "json"):
        raise BadRequest(f"--format is terminal or json, not '{form}'")
    for option, value, lists in (("--paper", paper, OF_PAPERS), ("--data", data, OF_DATA)):
        if value is not None and what not in lists:
            raise BadRequest(f"{option} goes with the lists {', '.join(lists)}: leave it out")
    chosen = [papers.load(name) for name in ([paper] if paper is not None else papers.names())]
    kind = None if data is None else _kind(data)
    if what == "methods" and form == "terminal":
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


def _kind(data: str) -> str:
    """The kind of a data set."""
    kind = data.partition(":")[0]
    known = [*BUILT_IN, *(name.partition(":")[0] for name in OWN)]
    if kind not in known:
        raise unknown("data set", data, known)
    return kind


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _pairs(chosen: Chosen, kind: str | None) -> Rows:
    return [
        {
            "pair": str(pair),
            "table": table.name,
            "data": table.data,
            "student lr": paper.on(table.data).recipe_for(pair.student).lr,
        }
        for paper, table in _tables_of(chosen, kind)
        for pair in table.pairs
    ]


def _papers(chosen: Chosen, _: str | None) -> Rows:
    return [
        {"paper": p.name, "title": p.title, "data": p.data, "epochs": p.recipe.epochs, "tables": list(p.tables)}
        for p in chosen
    ]


def _models(_: Chosen, __: str | None) -> Rows:
    aliases = {name: [a for a, names in models.ALIASES.items() if names == (name,)] for name in models.NETWORKS}
    plain: Rows = [{"network": name, "also": aliases[name], "where NETWORK is": None} for name in models.NETWORKS]
    return plain + [
        {"network": f"NETWORK+{name}", "also": [], "where NETWORK is": list(kind.bases) or "any"}
        for name, kind in KINDS.items()
    ]


def _datasets(_: Chosen, __: str | None) -> Rows:
    built_in: Rows = [
        {"data set": s.name, "classes": s.num_classes, "train": s.train_count, "test": s.test_count}
        for s in BUILT_IN.values()
    ]
    own = [{"data set": name, "classes": None, "train": None, "test": None} for name in OWN]
    return built_in + own


def _tables(chosen: Chosen, kind: str | None) -> Rows:
    return [
        {
            "table": t.name,
            "paper": p.name,
            "title": t.title,
            "epoch": t.epoch,
            "pairs": len(t.pairs),
            "source": t.source,
        }
        for p, t in _tables_of(chosen, kind)
    ]


def _tables_of(chosen: Chosen, kind: str | None) -> list[tuple[papers.Paper, papers.Table]]:
    return [(paper, table) for paper in chosen for table in paper.tables.values() if kind in (None, table.data)]


#: Sets that a user names by their place.
OWN: Final = ("npz:PATH", "folder:PATH", *STREAMED.values())

#: Lists that can be of one paper, and of one data set.
OF_PAPERS: Final = ("pairs", "methods", "papers", "tables")
OF_DATA: Final = ("pairs", "methods", "tables")

LISTS: Final[dict[str, Callable[[Chosen, str | None], Rows]]] = {
    "pairs": _pairs,
    "methods": objects,
    "papers": _papers,
    "models": _models,
    "datasets": _datasets,
    "tables": _tables,
}
