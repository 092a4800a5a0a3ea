"""``kdtable list``."""

from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from kdtable import models, papers
from kdtable.cli.console import print_table, shown
from kdtable.data.spec import BUILT_IN, STREAMED
from kdtable.errors import BadRequest, unknown
from kdtable.models.names import KINDS
from kdtable.report.escape import json_text

Rows = list[dict[str, Any]]


def list_(
    what: Annotated[str, typer.Argument(help="pairs, methods, papers, models, datasets or tables.")],
    form: Annotated[str, typer.Option("--format", help="terminal or json.")] = "terminal",
) -> None:
    """List what can be named on the command line.

    Example: kdtable list methods --format json
    """
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    if form not in ("terminal", "json"):
        raise BadRequest(f"--format is terminal or json, not '{form}'")
    rows = LISTS[what]()
    if form == "json":
        typer.echo(json_text(rows))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(shown(_text(value)) for value in row.values()))
    print_table(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _all_papers() -> list[papers.Paper]:
    return [papers.load(name) for name in papers.names()]


def _pairs() -> Rows:
    tables = [(paper, table) for paper in _all_papers() for table in paper.tables.values()]
    return [
        {
            "pair": str(pair),
            "table": table.name,
            "data": table.data,
            "student lr": paper.on(table.data).recipe_for(pair.student).lr,
        }
        for paper, table in tables
        for pair in table.pairs
    ]


def _methods() -> Rows:
    return [
        {
            "row": row.name,
            "paper": paper.name,
            "weights": dict(row.terms),
            "hyper-parameters": dict(row.params),
            "earlier stages (epochs)": dict(row.stages),
            "own recipe": dict(row.recipe),
            "taught by row": row.taught_by or None,
        }
        for paper in _all_papers()
        for row in paper.rows.values()
    ]


def _papers() -> Rows:
    return [
        {"paper": p.name, "title": p.title, "data": p.data, "epochs": p.recipe.epochs, "tables": list(p.tables)}
        for p in _all_papers()
    ]


def _models() -> Rows:
    aliases = {name: [a for a, names in models.ALIASES.items() if names == (name,)] for name in models.NETWORKS}
    plain: Rows = [{"network": name, "also": aliases[name], "where NETWORK is": None} for name in models.NETWORKS]
    return plain + [
        {"network": f"NETWORK+{name}", "also": [], "where NETWORK is": list(kind.bases) or "any"}
        for name, kind in KINDS.items()
    ]


def _datasets() -> Rows:
    built_in: Rows = [
        {"data set": s.name, "classes": s.num_classes, "train": s.train_count, "test": s.test_count}
        for s in BUILT_IN.values()
    ]
    own = [{"data set": name, "classes": None, "train": None, "test": None} for name in OWN]
    return built_in + own


def _tables() -> Rows:
    return [
        {
            "table": t.name,
            "paper": p.name,
            "title": t.title,
            "epoch": t.epoch,
            "pairs": len(t.pairs),
            "source": t.source,
        }
        for p in _all_papers()
        for t in p.tables.values()
    ]


#: Sets that a user names by their place.
OWN: Final = ("npz:PATH", "folder:PATH", *STREAMED.values())

LISTS: dict[str, Callable[[], Rows]] = {
    "pairs": _pairs,
    "methods": _methods,
    "papers": _papers,
    "models": _models,
    "datasets": _datasets,
    "tables": _tables,
}
