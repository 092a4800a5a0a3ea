"""Which rows of a table are best or tied, and how far they are from a baseline, where seeds support it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdtable.errors import unknown
from kdtable.recipes.metrics import Metric
from kdtable.report.result_table import BASELINES, Heading
from kdtable.report.statistics import intervals, marks, resolution

Numbers = NDArray[np.float64]

#: Names of the plain student's row, as a baseline.
_STUDENT = ("vanilla", "student")


def baseline(versus: str, labels: Sequence[str]) -> str | None:
    """The label of the row that others are compared with; ``None`` if the table lacks a default, KD or the student.

    Raises:
        BadRequest: another row that is not there.
    """
    if versus in _STUDENT:
        versus = "student"
    if versus in labels and versus != "teacher":
        return versus
    if versus in ("kd", "student"):
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
    numbers: Numbers = seeds.to_numpy()
    names: Iterable[Any] = seeds.columns
    place: dict[tuple[str, int], int] = {key: index for index, key in enumerate(names)}
    keys = list(zip(cells["row"], cells["column"], strict=True))
    cells = pd.concat([cells, _gaps(keys, place, numbers, versus)], axis=1)
    is_method = ~cells["row"].isin(BASELINES)
    cells["against"] = np.select(
        [is_method & (cells["gap_low"] > 0), is_method & (cells["gap_high"] < 0)], ["above", "below"], ""
    )
    ranked_together: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for key, group, method in zip(keys, cells["group"], is_method, strict=True):
        if method and key in place:
            ranked_together[key[1], group].append(key)
    found: dict[tuple[str, int], str] = {}
    for (column, _), of_group in ranked_together.items():
        scores = pd.DataFrame(numbers[:, [place[key] for key in of_group]], columns=[row for row, _ in of_group])
        of_rows = marks(scores, headings[column].metric.higher_is_better)
        found |= {key: of_rows[key[0]] for key in of_group}
    cells["mark"] = [found.get(key, "") for key in keys]
    return cells


def by_seed(values: pd.DataFrame) -> pd.DataFrame:
    """Values by seed: a column per row and heading."""
    return values.pivot(index="seed", columns=["row", "column"], values="value").astype(float)


def resolved(seeds: pd.DataFrame, headings: Sequence[Heading]) -> dict[Metric, float]:
    """For each metric, the difference of two rows of a pair that the table can tell from noise; NaN if none."""
    of_column, numbers = seeds.columns.get_level_values("column"), seeds.to_numpy()
    found = {}
    for metric in dict.fromkeys(heading.metric for heading in headings):
        of = [column for column, heading in enumerate(headings) if heading.metric == metric]
        found[metric] = resolution(pd.DataFrame(numbers[:, of_column == column]) for column in of)
    return found


def _gaps(
    keys: Sequence[tuple[str, int]],
    place: Mapping[tuple[str, int], int],
    numbers: Numbers,
    versus: str | None,
) -> pd.DataFrame:
    """Paired differences of cells from those of the row ``versus``; ``numbers`` has a column for each in ``place``."""
    nothing = numbers.shape[1]  # index of a column without numbers
    padded = np.column_stack([numbers, np.full(len(numbers), np.nan)])
    ours = padded[:, [place.get(key, nothing) if key[0] not in ("teacher", versus) else nothing for key in keys]]
    gaps = ours - padded[:, [place.get((versus or "", column), nothing) for _, column in keys]]
    found = dict(zip(("gap", "gap_low", "gap_high"), intervals(gaps), strict=True))
    return pd.DataFrame(found | {"gap_n": np.sum(~np.isnan(gaps), axis=0)})
