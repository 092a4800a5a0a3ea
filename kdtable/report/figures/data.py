"""What figures draw: one result table's frames, for one metric."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from kdtable.errors import BadRequest, unknown
from kdtable.recipes.metrics import Metric
from kdtable.report.costs import COSTS

if TYPE_CHECKING:
    from kdtable.report.result_table import ResultTable


@dataclass(frozen=True, slots=True)
class FigureData:
    """A table's numbers for one metric, with the epochs behind them.

    Attributes:
        title: of the table.
        metric: the metric drawn.
        versus: label of the row that others are compared with; ``None`` if the table has no such row.
        pairs: the table's pairs, in order.
        rows: labels of the rows that a figure may show, in order; the plain student's is "student".
        cells: a line for each row and pair, as in a ``ResultTable``.
        values: a line for each row, pair and seed, as in a ``ResultTable``.
        runs: a line for each run, as :func:`kdtable.report.frames.runs_frame` makes it.
        epochs_of: returns the epochs of runs, as :func:`kdtable.report.frames.epochs_frame` does.
        cost: one of :data:`kdtable.report.costs.COSTS`.
    """

    title: str
    metric: Metric
    versus: str | None
    pairs: tuple[str, ...]
    rows: tuple[str, ...]
    cells: pd.DataFrame
    values: pd.DataFrame
    runs: pd.DataFrame
    epochs_of: Callable[[Sequence[str]], pd.DataFrame]
    cost: str = "cpu-seconds"

    @classmethod
    def of(
        cls,
        table: "ResultTable",
        runs: pd.DataFrame,
        epochs_of: Callable[[Sequence[str]], pd.DataFrame],
        cost: str = "cpu-seconds",
    ) -> "FigureData":
        """The data of a table that has one metric, without its teachers.

        Raises:
            BadRequest: the table has several metrics, or the cost is unknown.
        """
        if cost not in COSTS:
            raise unknown("cost", cost, COSTS)
        metric, *others = dict.fromkeys(heading.metric for heading in table.headings)
        if others:
            raise BadRequest(f"a figure draws one metric: choose it with --metric {metric.name}")
        pairs = tuple(dict.fromkeys(heading.pair for heading in table.headings))
        rows = tuple(row for row in table.rows if row != "teacher")
        cells, values = (frame[frame["row"].isin(rows)] for frame in (table.cells, table.values))
        return cls(table.title, metric, table.versus, pairs, rows, cells, values, runs, epochs_of, cost)

    def only(self, pairs: Iterable[str] | None = None, rows: Iterable[str] | None = None) -> "FigureData":
        """The data of some pairs and rows, which are named as the table shows them, or a row without its settings.

        Raises:
            BadRequest: the table has no such pair or row.
        """
        chosen_pairs = self.pairs if pairs is None else _chosen("pair", pairs, {pair: pair for pair in self.pairs})
        chosen_rows = self.rows if rows is None else _chosen("method", rows, {row: _plain(row) for row in self.rows})
        cells, values = (
            frame[frame["pair"].isin(chosen_pairs) & frame["row"].isin(chosen_rows)]
            for frame in (self.cells, self.values)
        )
        return replace(self, pairs=chosen_pairs, rows=chosen_rows, cells=cells, values=values)

    def drawn(self, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
        """The pairs and the rows that have a line in ``frame``, in the table's order.

        Raises:
            BadRequest: there is no line.
        """
        if frame.empty:
            raise BadRequest(f"there is nothing to draw of {self.title}: no run of it has finished")
        there = {column: set(frame[column]) for column in ("pair", "row")}
        return [p for p in self.pairs if p in there["pair"]], [r for r in self.rows if r in there["row"]]

    def pivot(self, frame: pd.DataFrame, values: str) -> pd.DataFrame:
        """A column of ``frame`` as pairs by rows, in the table's order; NaN where it has no number."""
        pairs, rows = self.drawn(frame)
        return frame.pivot(index="pair", columns="row", values=values).reindex(index=pairs, columns=rows)

    @property
    def better(self) -> int:
        """1 if higher values are better, else -1."""
        return 1 if self.metric.higher_is_better else -1


def _plain(row: str) -> str:
    """A row's name without its changed settings; the plain student's is ``vanilla``."""
    return "vanilla" if row == "student" else row.partition(" ")[0]


def _chosen(kind: str, names: Iterable[str], known: dict[str, str]) -> tuple[str, ...]:
    """The ``known`` labels that ``names`` select, by the label or by the name that it maps to, in the table's order."""
    wanted = list(names)
    if lost := [name for name in wanted if name not in {*known, *known.values()}]:
        raise unknown(kind, lost[0], known)
    return tuple(label for label, plain in known.items() if label in wanted or plain in wanted)
