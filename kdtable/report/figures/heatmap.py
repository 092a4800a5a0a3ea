"""Heat maps of a sweep over two settings: a panel for each method, its best setting framed."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kdtable.recipes.metrics import Metric
from kdtable.report.figures.style import axis_label, panels, sheet, shown
from kdtable.report.sweep import MethodResult, SweepResult

#: Inches of a cell's height.
_CELL = 0.22


def draw(result: SweepResult) -> Figure:
    """The first setting down, the second across; the mean on held-out images in each cell."""
    down = max(len(_values(one, 0)) for one in result.methods)
    lines = -(-len(result.methods) // 2)
    figure, part = sheet(0.5 + lines * (0.55 + _CELL * down))
    for method, axes in zip(result.methods, panels(part, [one.method for one in result.methods]), strict=True):
        _panel(axes, method, result.metric)
    part.supxlabel(f"{axis_label(result.metric)}, mean over seeds; framed: the best")
    return figure


def _panel(axes: Axes, method: MethodResult, metric: Metric) -> None:
    rows, columns = _values(method, 0), _values(method, 1)
    grid = np.full((len(rows), len(columns)), np.nan)
    for one in method.trials:
        if one.mean is not None:
            grid[_place(method, one.trial.settings, rows, columns)] = one.mean
    if np.isfinite(grid).any():  # light where it is good, in grey too
        axes.imshow(grid, cmap="cividis" if metric.higher_is_better else "cividis_r", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2 if np.isfinite(grid).any() else 0.0
    for (i, j), value in np.ndenumerate(grid):
        light = np.isnan(value) or (value > middle) == metric.higher_is_better
        text = "—" if np.isnan(value) else f"{value:.2f}"
        axes.text(j, i, text, ha="center", va="center", color="black" if light else "white")
    if method.best is not None:
        i, j = _place(method, method.best.trial.settings, rows, columns)
        axes.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, edgecolor="#D55E00", linewidth=1.6))
    axes.set_xticks(range(len(columns)), [shown(value) for value in columns])
    axes.set_yticks(range(len(rows)), [shown(value) for value in rows])
    axes.set_xlabel(shown(method.varied[1]))
    axes.set_ylabel(shown(method.varied[0]))
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.grid(visible=False)


def _values(method: MethodResult, number: int) -> list[str]:
    """The values of a setting, in the order of the trials."""
    return list(dict.fromkeys(dict(one.trial.settings)[method.varied[number]] for one in method.trials))


def _place(
    method: MethodResult, settings: tuple[tuple[str, str], ...], rows: list[str], columns: list[str]
) -> tuple[int, int]:
    values = dict(settings)
    return rows.index(values[method.varied[0]]), columns.index(values[method.varied[1]])
