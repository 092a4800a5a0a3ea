"""Tables as CSV: tidy, a line per finished run and metric, or in the table's shape."""

from collections.abc import Sequence

import pandas as pd

from kdtable.escaping import csv_cell
from kdtable.report.result_table import VALUES, ResultTable


def csv(tables: Sequence[ResultTable]) -> str:
    """A line per finished run and metric."""
    parts = [
        table.values.assign(table=table.title, recipe=" ".join(table.changes_of))[["table", *VALUES, "recipe"]]
        for table in tables
    ]
    return _text(pd.concat(parts))


def wide(tables: Sequence[ResultTable]) -> str:
    """A line per row of a table, with mean, standard deviation and number of seeds of each column."""
    return _text(pd.concat([_wide(table) for table in tables]))


def _wide(table: ResultTable) -> pd.DataFrame:
    shown = ["mean", "std", "n", *(["published", "difference"] if table.compared else [])]
    found = pd.DataFrame({"table": table.title, "row": list(table.rows)})
    for column, heading in enumerate(table.headings):
        cells = table.cells[table.cells["column"] == column].set_index("row")
        for name in shown:
            found[f"{heading.text} {name}"] = cells[name].reindex(table.rows).to_numpy()
    return found


def _text(frame: pd.DataFrame) -> str:
    """CSV in which no text is a formula."""
    safe = frame.rename(columns=csv_cell)
    for name in safe.columns:
        if safe[name].dtype.kind not in "biuf":
            safe[name] = [csv_cell(value) if isinstance(value, str) else value for value in safe[name]]
    return safe.to_csv(index=False, lineterminator="\n").rstrip("\n")
