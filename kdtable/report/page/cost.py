"""Cost against accuracy, with the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Final

from kdtable.report.costs import COSTS, costs_of, front, steady
from kdtable.report.page.axes import Axis, apart, path
from kdtable.report.page.views import View, column_title
from kdtable.report.page.words import duration, number

if TYPE_CHECKING:
    import pandas as pd

LEFT: Final = 40
RIGHT: Final = 372
MIDDLE: Final = (LEFT + RIGHT) // 2
TOP: Final = 10
BOTTOM: Final = 250
LABEL: Final = 13


@dataclass(frozen=True, slots=True)
class CostPoint:
    """A row: its place, its label's place and side, whether it is on the front, and what it says."""

    label: str
    x: int
    y: int
    label_x: int
    label_y: int
    side: str
    front: bool
    text: str


@dataclass(frozen=True, slots=True)
class CostPanel:
    """A column's rows by cost; ``front`` is the path of the rows that no other beats in both."""

    title: str
    cost: str
    words: str
    metric: str
    points: tuple[CostPoint, ...]
    front: str
    x_ticks: Sequence[tuple[int, str]]
    y_ticks: Sequence[tuple[int, str]]


def cost_panels(view: View, epochs: "pd.DataFrame") -> list[CostPanel]:
    """For each column and recorded cost a panel, where the rows' costs differ. ``epochs``: in long form."""
    recorded = {cost: costs_of(cost, view.all_runs, epochs) for cost in COSTS}
    del recorded["seconds" if recorded["cpu-seconds"].notna().all() else "cpu-seconds"]
    found = []
    for column, _ in view.columns():
        for cost, of_runs in recorded.items():
            costs = {row: steady(cost, mean) for row, mean in _costs(view, column, of_runs).items()}
            if len(set(costs.values())) > 1:
                found.append(_panel(view, column, cost, costs))
    return found


def _costs(view: View, column: int, recorded: "pd.Series[float]") -> dict[str, float]:
    """Mean cost of the runs of each row that has one."""
    found = {}
    for row in view.methods(column):
        mean = float(recorded.reindex(view.sheet.runs.get((row, column), [])).mean())
        if isfinite(mean):
            found[row] = mean
    return found


def _panel(view: View, column: int, cost: str, costs: dict[str, float]) -> CostPanel:
    heading = view.table.headings[column]
    means = {row: view.sheet.cells[row, column].mean for row in costs}
    log = min(costs.values()) > 0 and max(costs.values()) > 8 * min(costs.values())
    x, y = Axis.around(costs.values(), LEFT, RIGHT, log=log), Axis.around(means.values(), BOTTOM, TOP)
    sign = 1 if heading.metric.higher_is_better else -1
    best = front(costs, {row: sign * mean for row, mean in means.items()})
    places = {row: (x.at(costs[row]), y.at(means[row])) for row in costs}
    points = []
    for row, (label_x, label_y, side) in _labels(places).items():
        at_x, at_y = places[row]
        text = _text(row, cost, costs, means)
        points.append(CostPoint(row, at_x, at_y, label_x, label_y, side, row in best, text))
    line = path(_stairs([places[row] for row in best], RIGHT))
    title, metric = column_title(view, heading), heading.metric.words
    return CostPanel(title, cost, COSTS[cost], metric, tuple(points), line, x.ticks(5), y.ticks())


def _labels(places: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int, str]]:
    """Places of labels, and the side that they are aligned to: those on each half of the picture are kept apart."""
    found = {}
    for side, away in (("right", 8), ("left", -8)):
        of_side = [row for row, (x, _) in places.items() if (x > MIDDLE) == (side == "left")]
        heights = apart([places[row][1] for row in of_side], LABEL, TOP, BOTTOM)
        for row, height in zip(of_side, heights, strict=True):
            found[row] = (places[row][0] + away, height, side)
    return found


def _stairs(places: Sequence[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """Corners of the line of the best that each cost affords."""
    corners = [places[0]]
    for x, y in places[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (end, corners[-1][1])]


def _text(row: str, cost: str, costs: dict[str, float], means: dict[str, float]) -> str:
    paid = duration(costs[row]) if cost.endswith("seconds") else f"{costs[row]:,.0f} {cost.replace('-', ' ')}"
    return f"{row}: {number(means[row])} for {paid}"
