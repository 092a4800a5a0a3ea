"""The heat map of gains over the row that methods are compared with."""

from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean

from kdtable.report.page.views import View
from kdtable.report.page.words import NOTHING, signed
from kdtable.report.result_table import Heading


@dataclass(frozen=True, slots=True)
class Gain:
    """A gain: its text, its share of the largest (in [-1, 1], above 0 is better), its interval, if it excludes 0."""

    text: str
    share: float = 0.0
    interval: str = ""
    sure: bool = False


@dataclass(frozen=True, slots=True)
class GainMap:
    """Gains by row and column, the highest mean gain first; ``means`` is empty for a single column."""

    versus: str
    columns: tuple[Heading, ...]
    rows: tuple[tuple[str, tuple[Gain, ...], str], ...]
    averaged: bool
    several_metrics: bool


def gain_map(view: View) -> GainMap | None:
    """Gains of the table's rows; ``None`` if there is nothing to compare with."""
    sheet, versus = view.sheet, view.sheet.versus
    if versus is None:
        return None
    columns = [number for number, _ in view.columns()]
    rows = [row for row in view.table.rows if row not in ("teacher", versus)]
    gaps = {(row, column): sheet.cells[row, column].gap for row in rows for column in columns}
    rows = [row for row in rows if any(isfinite(gaps[row, column]) for column in columns)]
    largest = max((abs(gap) for gap in gaps.values() if isfinite(gap)), default=0.0)
    means = {row: fmean(_better(view, c) * gaps[row, c] for c in columns if isfinite(gaps[row, c])) for row in rows}
    rows.sort(key=lambda row: -means[row])
    alike = len({view.table.headings[column].metric for column in columns}) == 1
    sign = _better(view, columns[0])
    return GainMap(
        versus,
        tuple(view.table.headings[column] for column in columns),
        tuple((row, tuple(_gain(view, row, c, largest) for c in columns), signed(sign * means[row])) for row in rows),
        averaged=alike and len(columns) > 1,
        several_metrics=not alike,
    )


def _better(view: View, column: int) -> int:
    return 1 if view.table.headings[column].metric.higher_is_better else -1


def _gain(view: View, row: str, column: int, largest: float) -> Gain:
    line = view.sheet.cells[row, column]
    if not isfinite(line.gap):
        return Gain(NOTHING)
    interval = f"{signed(line.gap_low)} to {signed(line.gap_high)}" if isfinite(line.gap_low) else ""
    # The root keeps small gains visible beside one large loss.
    share = sqrt(abs(line.gap) / largest) if largest else 0.0
    better = _better(view, column) * line.gap > 0
    return Gain(
        signed(line.gap), round(share if better else -share, 2), interval, sure=line.gap_low > 0 or line.gap_high < 0
    )
