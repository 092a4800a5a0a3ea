"""Learning curves: median and range over seeds, a small picture for each row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from kdtable.recipes.metrics import VALIDATED, Metric
from kdtable.report.page.axes import Axis, path, thinned
from kdtable.report.page.views import View, column_title
from kdtable.report.page.words import number

#: Points of a curve at most, and of all curves of the page together.
POINTS: Final = 60
ALL_POINTS: Final = 4_000
WIDTH: Final = 180
HEIGHT: Final = 96
LEFT: Final = 30


@dataclass(frozen=True, slots=True)
class Curve:
    """A row's curve as paths: the median, the range over seeds, and the end of the median in words."""

    label: str
    median: str
    range: str
    end: str


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """The curves of a column on common axes; ``reference`` is the path of the row that others are compared with."""

    title: str
    curves: tuple[Curve, ...]
    reference: str
    x_ticks: Sequence[tuple[int, str]]
    y_ticks: Sequence[tuple[int, str]]
    epochs: int


def curve_panels(views: Sequence[View], epochs: pd.DataFrame) -> dict[str, list[CurvePanel]]:
    """Panels by key of the view, a panel for each column with curves. ``epochs``: in long form."""
    wanted = [(view, column) for view in views for column, _ in view.columns()]
    many = sum(len(view.methods(column)) for view, column in wanted)
    most = max(8, min(POINTS, ALL_POINTS // max(many, 1)))
    measured = epochs[(epochs["stage"] == "main") & (epochs["kind"] == "metric")]
    of_metric = {name: frame.pivot_table("value", "epoch", "run") for name, frame in measured.groupby("name")}
    found: dict[str, list[CurvePanel]] = {view.key: [] for view in views}
    for view, column in wanted:
        metric = view.table.headings[column].metric
        name = metric.on_validation().stored if view.table.rule == VALIDATED else metric.stored
        if name in of_metric and (panel := _panel(view, column, of_metric[name], most)):
            found[view.key].append(panel)
    return found


def _panel(view: View, column: int, measured: pd.DataFrame, most: int) -> CurvePanel | None:
    """``measured``: a line per epoch, a column per run, as stored."""
    heading = view.table.headings[column]
    bands = {}
    for row in view.methods(column):
        runs = [run for run in view.sheet.runs.get((row, column), ()) if run in measured.columns]
        if runs:
            bands[row] = _band(measured[runs], heading.metric, most)
    if not bands or max(len(band) for band in bands.values()) < 2:
        return None
    last = max(max(band.index) for band in bands.values())
    x = Axis(1, max(last, 2), LEFT, WIDTH - 4)
    y = Axis.around((value for band in bands.values() for value in _ends(band)), HEIGHT - 14, 6)
    curves = [_curve(row, band, x, y) for row, band in bands.items()]
    reference = next((curve.median for curve in curves if curve.label == view.sheet.versus), "")
    ticks = [(x.at(epoch), str(epoch)) for epoch in (1, last)]
    return CurvePanel(column_title(view, heading), tuple(curves), reference, ticks, y.ticks(4), last)


def _band(runs: pd.DataFrame, metric: Metric, most: int) -> pd.DataFrame:
    """Median, lowest and highest over runs, in the unit shown, at ``most`` epochs at most, the last included."""
    found = runs.dropna(how="all")
    shown = metric.shown(found.iloc[list(thinned(len(found), most))])  # type: ignore[arg-type]
    return pd.DataFrame({name: getattr(shown, name)(axis="columns") for name in ("median", "min", "max")})


def _ends(band: pd.DataFrame) -> Iterable[float]:
    return (float(band["min"].min()), float(band["max"].max()))


def _curve(row: str, band: pd.DataFrame, x: Axis, y: Axis) -> Curve:
    def points(name: str) -> list[tuple[int, int]]:
        return [(x.at(epoch), y.at(value)) for epoch, value in band[name].items()]  # type: ignore[arg-type]

    around = path([*points("max"), *reversed(points("min"))]) + "z"
    return Curve(row, path(points("median")), around, number(float(band["median"].iloc[-1])))
