"""Accuracy against what it costs, with the Pareto front, in a panel for each pair."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from kdtable.errors import BadRequest
from kdtable.report.costs import COSTS, costs_of, front, steady
from kdtable.report.figures.data import FigureData
from kdtable.report.figures.style import Look, axis_label, lines_of, looks, panels, sheet


def draw(data: FigureData) -> Figure:
    """Mean cost across, mean metric up. Rows on the front are filled: no other is both cheaper and better.

    Raises:
        BadRequest: no finished run has a cost.
    """
    means = _means(data)
    pairs, rows = data.drawn(means)
    look = looks(rows, data.versus)
    line = Line2D([], [], color="#777777", linewidth=0.8, linestyle="--", label="Pareto front (filled)")
    figure, part = sheet(0.3 + 1.6 * lines_of(pairs), [*(look[row].handle(row) for row in rows), line])
    for pair, axes in zip(pairs, panels(part, pairs), strict=True):
        _panel(axes, means[means["pair"] == pair], look, data.better)
    part.supxlabel(COSTS[data.cost])
    part.supylabel(axis_label(data.metric))
    return figure


def _means(data: FigureData) -> pd.DataFrame:
    """Lines (pair, row, cost, value), each a mean over seeds."""
    values = data.values.merge(_costs(data), on="run").dropna(subset=["cost", "value"])
    if values.empty:
        raise BadRequest(f"there is nothing to draw: no finished run of {data.title} has its {data.cost}")
    means = values.groupby(["pair", "row"], sort=False, as_index=False)[["cost", "value"]].mean()
    return means.assign(cost=[steady(data.cost, cost) for cost in means["cost"]])


def _costs(data: FigureData) -> pd.DataFrame:
    """Lines (run, cost)."""
    runs = data.runs[data.runs["run"].isin(data.values["run"])]
    epochs = data.epochs_of(list(runs["run"]) if data.cost == "passes" else [])
    return costs_of(data.cost, runs, epochs).rename("cost").rename_axis("run").reset_index()


def _panel(axes: Axes, means: pd.DataFrame, look: dict[str, Look], better: int) -> None:
    costs = dict(zip(means["row"], means["cost"], strict=True))
    best = front(costs, dict(zip(means["row"], better * means["value"], strict=True)))
    on_front = means.set_index("row").loc[best]
    axes.plot(on_front["cost"], on_front["value"], color="#777777", linewidth=0.8, linestyle="--", zorder=1.5)
    for row, cost, value in means[["row", "cost", "value"]].itertuples(index=False):
        one = look[row]
        face = one.colour if row in best else "white"
        axes.plot(cost, value, one.marker, color=one.colour, markerfacecolor=face, markersize=5)
    axes.margins(0.12)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(3))
