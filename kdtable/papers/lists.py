"""Lists of what the command line accepts: pairs, methods, papers, networks, data sets, tables."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from kdtable import models
from kdtable.data.names import READ, spelled
from kdtable.data.spec import BUILT_IN, DETECTION, STREAMED
from kdtable.errors import unknown
from kdtable.models.names import KINDS
from kdtable.papers.listing import objects
from kdtable.papers.loader import Paper
from kdtable.papers.model import Table

Rows = list[dict[str, Any]]


Papers = Sequence[Paper]


def kind_of(data: str) -> str:
    """The kind of a data set: its name, without the path of ``npz:PATH`` and the like.

    Raises:
        BadRequest: unknown kind.
    """
    kind = spelled(data).partition(":")[0]
    known = [*BUILT_IN, *(name.partition(":")[0] for name in OWN)]
    if kind not in known:
        raise unknown("data set", data, known)
    return kind


def _pairs(chosen: Papers, kind: str | None) -> Rows:
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


def _papers(chosen: Papers, _: str | None) -> Rows:
    return [
        {"paper": p.name, "title": p.title, "data": p.data, "epochs": p.recipe.epochs, "tables": list(p.tables)}
        for p in chosen
    ]


def _models(_: Papers, __: str | None) -> Rows:
    aliases = {name: [a for a, names in models.ALIASES.items() if names == (name,)] for name in models.NETWORKS}
    plain: Rows = [{"network": name, "also": aliases[name], "where NETWORK is": None} for name in models.NETWORKS]
    theirs = {"timm:NETWORK": "any of timm (pip install 'kdtable[timm]')", "torchvision:NETWORK": "any of torchvision"}
    plain += [{"network": name, "also": [], "where NETWORK is": what} for name, what in theirs.items()]
    return plain + [
        {"network": f"NETWORK+{name}", "also": [], "where NETWORK is": list(kind.bases) or "any"}
        for name, kind in KINDS.items()
    ]


def _datasets(_: Papers, __: str | None) -> Rows:
    built_in: Rows = [
        {"data set": s.name, "classes": s.num_classes, "train": s.train_count, "test": s.test_count}
        for s in BUILT_IN.values()
    ]
    own = [{"data set": name, "classes": None, "train": None, "test": None} for name in OWN]
    return built_in + own


def _tables(chosen: Papers, kind: str | None) -> Rows:
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


def _tables_of(chosen: Papers, kind: str | None) -> list[tuple[Paper, Table]]:
    return [(paper, table) for paper in chosen for table in paper.tables.values() if kind in (None, table.data)]


#: Data sets that are named by a path, or by a hub's name.
OWN: Final = tuple(name for name in (*READ.values(), *STREAMED.values(), *DETECTION.values()) if name not in BUILT_IN)


#: Lists that ``--paper`` restricts.
OF_PAPERS: Final = ("pairs", "methods", "papers", "tables")


#: Lists that ``--data`` restricts.
OF_DATA: Final = ("pairs", "methods", "tables")


#: List name to the function that makes its rows.
LISTS: Final[dict[str, Callable[[Papers, str | None], Rows]]] = {
    "pairs": _pairs,
    "methods": objects,
    "papers": _papers,
    "models": _models,
    "datasets": _datasets,
    "tables": _tables,
}
