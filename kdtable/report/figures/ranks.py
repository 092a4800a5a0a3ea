"""Critical-difference diagram (Demšar 2006): mean ranks, and bars over rows that do not differ significantly.

All maximal cliques are drawn; they may overlap. Wilcoxon signed-rank tests with Holm's correction after a Friedman
test, as Benavoli et al. (2016) recommend, since tests of mean ranks depend on the other rows.
"""

import textwrap
from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdtable.report.figures.data import FigureData
from kdtable.report.figures.style import WIDTH, sheet, shown, wrapped
from kdtable.report.statistics import ranks

#: Inches of a label's line, and of a clique's bar.
_LINE: Final = 0.16
_BAR: Final = 0.09


def draw(data: FigureData) -> Figure:
    """The best mean rank at the left. Rows that lack a pair are left out, and named.

    Raises:
        BadRequest: too few rows or pairs for the tests.
    """
    means = data.pivot(data.cells.dropna(subset=["mean"]), "mean")
    found = ranks(means, data.metric.higher_is_better)
    order = found.mean.sort_values()
    bars = [[order[row] for row in clique] for clique in found.cliques if len(clique) > 1]
    depth = _BAR * (len(bars) + 1)
    words = [f"mean rank over {found.pairs} pairs (Friedman p = {found.friedman_p:.2g});"]
    words.append("bars join rows without a significant difference (Wilcoxon, Holm)")
    words += textwrap.wrap(f"left out, for want of a pair: {shown(', '.join(found.left_out))}", 60)[
        : 3 * bool(found.left_out)
    ]
    height = depth + _LINE * -(-len(order) // 2) + 0.1
    figure, part = sheet(height + 0.25 + 0.12 * len(words))
    axes = part.subplots()
    _axis(axes, order, height)
    _labels(axes, order, depth)
    for number, clique in enumerate(bars, start=1):
        axes.hlines(-_BAR * number, min(clique) - 0.05, max(clique) + 0.05, color="black", linewidth=2.4)
    part.supxlabel("\n".join(words))
    return figure


def _axis(axes: Axes, order: "pd.Series[float]", height: float) -> None:
    """An axis of ranks on top; below it, a unit of y is an inch."""
    rows = len(order)
    labels = min(1.2, 0.35 + 0.06 * max(len(wrapped(str(row))) for row in order.index))  # inches at either side
    margin = (rows - 1) * labels / (WIDTH - 2 * labels)
    axes.set(xlim=(1 - margin, rows + margin), ylim=(-height, 0.02), yticks=[])
    axes.set_xticks(range(1, rows + 1, 1 if rows <= 10 else 2))
    axes.xaxis.tick_top()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.spines["top"].set_bounds(1, rows)
    axes.grid(visible=False)


def _labels(axes: Axes, order: "pd.Series[float]", depth: float) -> None:
    """The better half at the left, from the top down; the other at the right, from the bottom up."""
    half, last = -(-len(order) // 2), len(order) - 1
    for number, (row, rank) in enumerate(order.items()):
        left = number < half
        y = -depth - _LINE * ((number if left else last - number) + 0.5)
        x = 1 - 0.02 * last if left else 1 + 1.02 * last
        axes.plot([rank, rank, x], [0, y, y], color="black", linewidth=0.6)
        name = wrapped(str(row))
        text = f"{name} ({rank:.1f}) " if left else f" ({rank:.1f}) {name}"
        axes.text(x, y, text, ha="right" if left else "left", va="center")
