"""Which rows of a table are best or tied, and how far they are from a baseline, where seeds support it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kdtable.errors import unknown
from kdtable.recipes.metrics import Metric
from kdtable.report.result_table import BASELINES, Heading
from kdtable.report.statistics import intervals, marks, resolution

#: Names of the plain student's row, as a baseline.
_STUDENT = ("vanilla", "student")


def baseline(versus: str, labels: Sequence[str]) -> str | None:
    """The label of the row that others are compared with; ``None`` if the default, ``kd``, is not in the table.

    Raises:
        BadRequest: another row that is not there.
    """
    if versus in _STUDENT:
        versus = "student"
    if versus in labels and versus != "teacher":
        return versus
    if versus == "kd":
        return None
    raise unknown("row to compare with", versus, (label for label in labels if label != "teacher"))


def ranked(cells: pd.DataFrame, seeds: pd.DataFrame, headings: Sequence[Heading], versus: str | None) -> pd.DataFrame:
    """Cells with ``gap``, ``gap_low``, ``gap_high``, ``against`` and ``mark``.

    Args:
        cells: a line per row and heading, with ``row``, ``column``, ``group``.
        seeds: by :func:`by_seed`.
        headings: by ``column``.
        versus: label of the row to compare with.
    """
    cells = cells.join(_gaps(seeds, versus), on=["row", "column"])
    cells["gap_n"] = cells["gap_n"].fillna(0).astype(int)
    cells["against"] = ""
    is_method = ~cells["row"].isin(BASELINES)
    cells.loc[is_method & (cells["gap_low"] > 0), "against"] = "above"
    cells.loc[is_method & (cells["gap_high"] < 0), "against"] = "below"
    found: dict[tuple[str, int], str] = {}
    place, numbers = {key: index for index, key in enumerate(seeds.columns)}, seeds.to_numpy()
    for (column, _), rows in cells[is_method].groupby(["column", "group"])["row"]:
        shown = [row for row in rows if (row, column) in place]
        scores = pd.DataFrame(numbers[:, [place[row, column] for row in shown]], columns=shown)
        of_rows = marks(scores, headings[column].metric.higher_is_better)
        found |= {(row, column): mark for row, mark in of_rows.items()}
    cells["mark"] = [found.get(key, "") for key in zip(cells["row"], cells["column"], strict=True)]
    return cells


def by_seed(values: pd.DataFrame) -> pd.DataFrame:
    """Values by seed: a column per row and heading."""
    return values.pivot(index="seed", columns=["row", "column"], values="value").astype(float)


def resolved(seeds: pd.DataFrame, headings: Sequence[Heading]) -> dict[Metric, float]:
    """For each metric, the difference of two rows of a pair that the table can tell from noise; NaN if none."""
    of_column = seeds.columns.get_level_values("column")
    found = {}
    for metric in dict.fromkeys(heading.metric for heading in headings):
        of = [column for column, heading in enumerate(headings) if heading.metric == metric]
        found[metric] = resolution(seeds.loc[:, of_column == column] for column in of)
    return found


def _gaps(seeds: pd.DataFrame, versus: str | None) -> pd.DataFrame:
    others = [key for key in seeds.columns if key[0] != versus and (versus, key[1]) in seeds.columns]
    ours = seeds[others].to_numpy()
    theirs = seeds[[(versus, column) for _, column in others]].to_numpy()
    gaps = ours - theirs
    found = dict(zip(("gap", "gap_low", "gap_high"), intervals(gaps), strict=True))
    place = pd.MultiIndex.from_tuples(others, names=["row", "column"]) if others else seeds.columns[:0]
    return pd.DataFrame(found | {"gap_n": np.sum(~np.isnan(gaps), axis=0)}, index=place)
