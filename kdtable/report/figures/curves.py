"""Learning curves: the median over seeds and their range, in a panel for each pair."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdtable.errors import BadRequest
from kdtable.recipes.metrics import VALIDATED, Metric
from kdtable.report.figures.data import FigureData
from kdtable.report.figures.style import Look, axis_label, lines_of, looks, panels, sheet


def draw(data: FigureData) -> Figure:
    """Epochs of the main stage across, the metric up; a line for each row.

    Raises:
        BadRequest: no run has an epoch with the metric.
    """
    epochs = _epochs(data)
    pairs, rows = data.drawn(epochs)
    look, metric = looks(rows, data.versus), _metric(data)
    handles = [look[row].handle(row, lines=True) for row in rows]
    figure, part = sheet(0.4 + 1.6 * lines_of(pairs), handles)
    for pair, axes in zip(pairs, panels(part, pairs, sharex=True), strict=True):
        of_pair = epochs[epochs["pair"] == pair]
        for row in rows:
            _line(axes, of_pair[of_pair["row"] == row], look[row])
        _focus(axes, of_pair)
    part.supxlabel("epoch of the main stage\n(lines: median over seeds; bands: their range)")
    part.supylabel(axis_label(metric))
    return figure


def _metric(data: FigureData) -> Metric:
    """The metric, on held-out images where these choose the epoch: the test images are measured in no other."""
    return data.metric.on_validation() if VALIDATED in set(data.values["rule"]) else data.metric


def _epochs(data: FigureData) -> pd.DataFrame:
    """Lines (pair, row, run, epoch, value) in the unit shown."""
    behind = data.values[["pair", "row", "run"]].drop_duplicates()
    epochs = data.epochs_of(list(behind["run"].unique()))
    kept = (epochs["stage"] == "main") & (epochs["kind"] == "metric") & (epochs["name"] == _metric(data).stored)
    found = behind.merge(epochs[kept], on="run")
    if found.empty:
        raise BadRequest(
            f"there is no curve to draw: no finished run of {data.title} has epochs with {data.metric.name}"
        )
    return found.assign(value=found["value"].map(data.metric.shown))


def _line(axes: Axes, epochs: pd.DataFrame, look: Look) -> None:
    by_epoch = epochs.groupby("epoch")["value"]
    median, low, high = by_epoch.median(), by_epoch.min(), by_epoch.max()
    if median.empty:
        return
    every = max(1, len(median) // 6)
    axes.plot(median.index, median, color=look.colour, linestyle=look.line, marker=look.marker, markevery=every)
    axes.fill_between(median.index, low, high, color=look.colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _focus(axes: Axes, epochs: pd.DataFrame) -> None:
    """Leave out the steep first tenth of the epochs, next to which rows look alike."""
    later = epochs.loc[epochs["epoch"] > epochs["epoch"].max() / 10, "value"]
    margin = 0.05 * (later.max() - later.min()) or 1.0
    axes.set_ylim(later.min() - margin, later.max() + margin)
