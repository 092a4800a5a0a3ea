"""Heat map of the gain over the baseline: rows down, pairs across, in blocks of pairs that fit a column."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from kdtable.errors import BadRequest
from kdtable.models.foreign import split_names
from kdtable.report.figures.data import FigureData
from kdtable.report.figures.style import row_labels, rows_height, sheet, shown

#: Pairs side by side.
ACROSS: Final = 7
#: Hatching of gains below 0.
_WORSE: Final = "////"
#: The pale middle of a diverging map: black numbers stay readable on it, in grey too.
_COLOURS: Final = ListedColormap(colormaps["PuOr_r"](np.linspace(0.22, 0.78, 255)))


def draw(data: FigureData) -> Figure:
    """Each cell's gain in points, above 0 where the row is better; hatched where it is worse.

    A gain is bold where its 95 % interval (t, paired by seed) leaves out 0.

    Raises:
        BadRequest: no row shares a seed with the baseline on any pair.
    """
    if data.versus is None:
        raise BadRequest(f"there is no gain to draw: {data.title} has no row to compare with: name one with --versus")
    cells = data.cells[~data.cells["row"].isin(["student", data.versus])].dropna(subset=["gap"])
    if cells.empty:
        raise BadRequest(f"there is no gain to draw: no row of {data.title} has a seed in common with {data.versus}")
    gains = data.better * data.pivot(cells, "gap").T
    sure = data.pivot(cells.assign(sure=(cells["gap_low"] > 0) | (cells["gap_high"] < 0)), "sure").T
    blocks = np.array_split(np.arange(len(gains.columns)), -(-len(gains.columns) // ACROSS))
    handles = [
        Patch(facecolor="none", edgecolor="black", hatch=_WORSE, linewidth=0.4, label=f"worse than {data.versus}"),
        Patch(facecolor="none", edgecolor="none", label="bold: the 95 % interval leaves out 0"),
    ]
    figure, part = sheet((0.55 + rows_height(list(gains.index))) * len(blocks) + 0.2, handles)
    limit = float(np.nanmax(np.abs(gains.to_numpy(float)))) or 1.0
    for axes, block in zip(part.subplots(len(blocks), squeeze=False)[:, 0], blocks, strict=True):
        _block(axes, gains.iloc[:, block], sure.iloc[:, block], limit)
        axes.set_xlim(-0.5, max(3, len(blocks[0])) - 0.5)  # cells of one width in all blocks
    part.suptitle(f"gain over {shown(data.versus)} in {data.metric.words}{_unit(data)}")
    return figure


def _unit(data: FigureData) -> str:
    unit = {"%": "points"}.get(data.metric.unit, data.metric.unit)
    return f" ({unit})" if unit else ""


def _block(axes: Axes, gains: pd.DataFrame, sure: pd.DataFrame, limit: float) -> None:
    axes.imshow(gains.to_numpy(float), cmap=_COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    for (y, x), gain in np.ndenumerate(gains.to_numpy(float)):
        if np.isnan(gain):
            axes.text(x, y, "-", ha="center", va="center")
            continue
        rounded = round(gain, 1) + 0.0  # adding 0 turns -0.0 into 0.0
        if rounded < 0:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch=_WORSE, edgecolor="#ffffff", lw=0))
        weight = "bold" if sure.iat[y, x] else "normal"
        axes.text(x, y, _number(rounded), ha="center", va="center", fontweight=weight)
    _labels(axes, list(gains.columns), list(gains.index))


def _number(gain: float) -> str:
    """With a minus sign as wide as the plus sign."""
    return f"{gain:+.1f}".replace("-", "\N{MINUS SIGN}")


def _labels(axes: Axes, pairs: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(pairs)), [":\n".join(split_names(shown(p))) for p in pairs], rotation=35, ha="right")
    axes.tick_params(axis="x", pad=0)
    row_labels(axes, rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
