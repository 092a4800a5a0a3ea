"""Every seed as a dot, with the mean and its interval, in a panel for each pair."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdtable.report.figures.data import FigureData
from kdtable.report.figures.style import axis_label, lines_of, panels, row_labels, rows_height, seeds_words, sheet
from kdtable.report.statistics import intervals

#: Colour of intervals.
_BAR: Final = "#aaaaaa"


def draw(data: FigureData) -> Figure:
    """Rows down, the metric across; the baseline's mean is a dashed line.

    Raises:
        BadRequest: no run has finished.
    """
    values = data.values.dropna(subset=["value"])
    pairs, rows = data.drawn(values)
    figure, part = sheet((0.5 + rows_height(rows)) * lines_of(pairs) + 0.15, _handles())
    for pair, axes in zip(pairs, panels(part, pairs, sharey=True), strict=True):
        _panel(axes, pair, rows, data)
    counts = seeds_words(values.groupby(["pair", "row"]).size())
    part.supxlabel(f"{axis_label(data.metric)}, {counts}")
    return figure


def _panel(axes: Axes, pair: str, rows: Sequence[str], data: FigureData) -> None:
    values = data.values[data.values["pair"] == pair].groupby("row")["value"]
    marks = data.cells[data.cells["pair"] == pair].set_index("row")["mark"]
    for height, row in enumerate(rows):
        if row not in values.groups:
            continue
        seeds = values.get_group(row).to_numpy(float)
        face = "black" if marks[row] in ("best", "tied") else "white"
        axes.hlines(height, *interval(seeds), color=_BAR, linewidth=3)
        axes.plot(seeds, np.full(len(seeds), height), "o", color="black", markerfacecolor=face, markersize=3.2)
        axes.plot(seeds.mean(), height, "|", color="black", markersize=9, markeredgewidth=1.4)
    if data.versus in values.groups:
        axes.axvline(values.get_group(data.versus).mean(), color="black", linestyle="--", linewidth=0.6, zorder=1)
    row_labels(axes, rows)
    axes.grid(axis="y", visible=False)


def interval(seeds: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The 95 % t-interval of the mean of values (n,); the mean itself, twice, below two."""
    mean, low, high = (float(ends[0]) for ends in intervals(seeds[:, None]))
    return (low, high) if len(seeds) > 1 else (mean, mean)


def _handles() -> list[Line2D]:
    """The legend's entries."""
    dot, best, mean = (Line2D([], [], color="black", linestyle="none") for _ in range(3))
    dot.set(marker="o", markerfacecolor="white", label="a seed")
    best.set(marker="o", label="a seed of the best, or of a row tied with it")
    mean.set(marker="|", markersize=9, markeredgewidth=1.4, label="mean")
    return [dot, best, mean, Line2D([], [], color=_BAR, linewidth=3, label="its 95 % t-interval")]
