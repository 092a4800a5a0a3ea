"""Our numbers against the published ones."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdtable.errors import BadRequest
from kdtable.report.figures.data import FigureData
from kdtable.report.figures.seeds import interval
from kdtable.report.figures.style import WIDTH, axis_label, looks, sheet


def draw(data: FigureData) -> Figure:
    """Published numbers across, our means up; bars are 95 % t-intervals of our means over seeds.

    Raises:
        BadRequest: no cell has both numbers.
    """
    cells = data.cells.dropna(subset=["mean", "published"])
    if cells.empty:
        raise BadRequest(f"there is nothing to compare: no finished run of {data.title} has a published number")
    _, rows = data.drawn(cells)
    look = looks(rows, data.versus)
    equal = Line2D([], [], color="black", linewidth=0.6, linestyle="--", label="equal")
    figure, part = sheet(WIDTH - 0.5, [*(look[row].handle(row) for row in rows), equal])
    axes = part.subplots()
    for row, published, mean, low, high in _points(data, cells):
        one = look[row]
        axes.vlines(published, low, high, color=one.colour, linewidth=0.6)
        axes.plot(published, mean, one.marker, color=one.colour, markerfacecolor="white")
    _diagonal(axes)
    axes.set_xlabel(f"published {axis_label(data.metric)}")
    axes.set_ylabel(f"ours, {axis_label(data.metric)}")
    return figure


def _points(data: FigureData, cells: pd.DataFrame) -> Iterator[tuple[str, float, float, float, float]]:
    """A row's label, the published number, our mean, and the ends of its interval."""
    ours = data.values.groupby(["row", "column"])["value"]
    lines = cells[["row", "column", "published", "mean"]].itertuples(index=False, name=None)
    for row, column, published, mean in lines:
        yield row, published, mean, *interval(ours.get_group((row, column)).to_numpy(float))


def _diagonal(axes: Axes) -> None:
    """The line of equal numbers, over the whole of both axes."""
    low, high = (f(*ends) for f, ends in ((min, (axes.get_xlim()[0], axes.get_ylim()[0])), (max, _tops(axes))))
    axes.plot([low, high], [low, high], color="black", linewidth=0.6, linestyle="--", zorder=1)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _tops(axes: Axes) -> tuple[float, float]:
    return axes.get_xlim()[1], axes.get_ylim()[1]
