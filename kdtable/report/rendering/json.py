"""Tables as JSON: every cell with its seeds and the ids of their runs."""

from collections.abc import Sequence
from typing import Any, Final

from kdtable.escaping import json_text
from kdtable.report.result_table import ResultTable

#: Columns of `ResultTable.cells` in the order in which they are printed.
_PRINTED: Final = (
    "pair", "metric", "row", "state", "mean", "std", "n", "asked", "not_applicable", "failed", "published",
    "difference", "mark", "against", "gap", "gap_low", "gap_high", "gap_n",
)  # fmt: skip


def json(tables: Sequence[ResultTable]) -> str:
    """A list of tables: title, captions, columns, ``versus`` and cells."""
    return json_text([_table(table) for table in tables])


def _table(table: ResultTable) -> dict[str, Any]:
    about = {"title": table.title, "captions": table.captions, "columns": table.columns, "versus": table.versus}
    return about | {"cells": _cells(table)}


def _cells(table: ResultTable) -> list[dict[str, Any]]:
    of_cell = dict(list(table.values.groupby(["row", "column"])))
    cells = table.cells.astype(object).where(table.cells.notna(), None)
    records = []
    for cell in cells.to_dict("records"):
        lines = of_cell.get((cell["row"], cell["column"]), table.values.iloc[:0])
        seeds = [int(seed) for seed in lines["seed"]]
        records.append(
            {"table": table.title}
            | {name: cell[name] for name in _PRINTED}
            | {"notes": [table.footnotes[number - 1] for number in cell["notes"]]}
            | {
                "seeds": dict(zip(seeds, lines["value"], strict=True)),
                "runs": dict(zip(seeds, lines["run"], strict=True)),
            }
        )
    return records
