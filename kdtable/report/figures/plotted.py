"""From what ``kdtable plot`` is asked for to a figure in a file."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd

from kdtable.errors import BadRequest
from kdtable.report.asked import Asked, check, result_tables
from kdtable.report.figures import check as check_kind
from kdtable.report.figures import write
from kdtable.report.figures.data import FigureData
from kdtable.report.frames import epochs_frame, runs_frame
from kdtable.report.result_table import ResultTable
from kdtable.store import Store


def plot(
    kind: str,
    path: Path,
    asked: Asked,
    *,
    pairs: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    cost: str = "seconds",
    number: int | None = None,
) -> None:
    """Draw a table of a store.

        plot("gains", Path("gains.pdf"), Asked(Path("results"), table="crd-1"))

    Args:
        kind: one of :data:`kdtable.report.figures.KINDS`.
        path: the file.
        asked: store, table, metric, epoch and baseline, as for a report.
        pairs: the pairs to draw; all by default.
        methods: the rows to draw; all by default.
        cost: of the kind ``cost``, what accuracy is drawn against.
        number: which of the tables that a report prints, from 1.

    Raises:
        BadRequest: an unknown name, several tables to choose from, or too little to draw.
    """
    check_kind(kind, path)
    if kind == "published" and asked.table is None:
        raise BadRequest("published numbers belong to a table: name it with --table crd-1")
    asked = replace(asked, compare=kind == "published")
    check(asked)
    found = result_tables(asked)
    with closing(Store(asked.results, asked.store, create=False)) as store:
        table = _chosen(found, number)
        data = FigureData.of(table, runs_frame(store.runs(set(table.values["run"]))), _epochs(store), cost)
        write(kind, data.only(pairs, methods), path)


def _epochs(store: Store) -> Callable[[Sequence[str]], pd.DataFrame]:
    return lambda runs: epochs_frame(store, runs)


def _chosen(tables: Sequence[ResultTable], number: int | None) -> ResultTable:
    """The table of a number; without one, the only table that has a finished run.

    Raises:
        BadRequest: there is no such table, or there are several.
    """
    if number is not None:
        if not 1 <= number <= len(tables):
            raise BadRequest(f"--number is 1 to {len(tables)}, in the order of 'kdtable report', not {number}")
        return tables[number - 1]
    filled = {place: table for place, table in enumerate(tables, start=1) if not table.values.empty}
    if len(filled) > 1:
        choice = "; ".join(f"{place}: {table.title}" for place, table in filled.items())
        raise BadRequest(
            f"there are several tables: choose one with --number, as 'kdtable report' prints them ({choice})"
        )
    return next(iter(filled.values()), tables[0])
