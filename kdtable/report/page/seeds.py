"""Every seed as a dot, with the mean and its 95 % interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np

from kdtable.report.page.axes import Axis, dots
from kdtable.report.page.views import View, column_title
from kdtable.report.page.words import number
from kdtable.report.statistics import intervals

LINE: Final = 20
LEFT: Final = 104
RIGHT: Final = 372
TOP: Final = 8


@dataclass(frozen=True, slots=True)
class Strip:
    """A row's dots: its label, their path, the place of the mean, the ends of the interval, and what it says."""

    label: str
    y: int
    dots: str
    mean: int
    interval: tuple[int, int] | None
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """The dots of a column; ``reference`` is the mean of the row that others are compared with."""

    title: str
    unit: str
    strips: tuple[Strip, ...]
    ticks: Sequence[tuple[int, str]]
    reference: int | None
    height: int


def seed_panels(view: View) -> list[Panel]:
    """A panel for each column."""
    return [_panel(view, column) for column, _ in view.columns()]


def _panel(view: View, column: int) -> Panel:
    heading, rows = view.table.headings[column], view.methods(column)
    values = {row: view.sheet.seeds.get((row, column), {}) for row in rows}
    rows = [row for row in rows if values[row]]
    axis = _axis(values)
    strips = [_strip(row, values[row], axis, TOP + LINE * line + LINE // 2) for line, row in enumerate(rows)]
    versus = view.sheet.versus
    reference = axis.at(fmean(values[versus].values())) if versus is not None and values.get(versus) else None
    unit = " ".join(filter(None, (heading.metric.words, heading.metric.unit and f"({heading.metric.unit})")))
    height = TOP + LINE * len(rows)
    return Panel(column_title(view, heading), unit, tuple(strips), axis.ticks(), reference, height)


def _axis(values: Mapping[str, Mapping[int, float]]) -> Axis:
    """An axis for all dots, and for intervals up to half of the dots' range beyond them."""
    found = [value for seeds in values.values() for value in seeds.values()]
    low, high = min(found), max(found)
    room = (high - low) / 2 or 1.0
    ends = [end for seeds in values.values() for end in interval(list(seeds.values())) or ()]
    return Axis.around([*found, *(min(max(end, low - room), high + room) for end in ends)], LEFT, RIGHT)


def _strip(row: str, seeds: Mapping[int, float], axis: Axis, y: int) -> Strip:
    values = list(seeds.values())
    ends, mean = interval(values), fmean(values)
    cut = None if ends is None else (max(axis.at(ends[0]), LEFT), min(axis.at(ends[1]), RIGHT))
    text = ", ".join(f"seed {seed}: {number(value)}" for seed, value in sorted(seeds.items()))
    if ends is not None:
        text += f"; mean {number(mean)}, 95 % interval {number(ends[0])} to {number(ends[1])}"
    return Strip(row, y, dots((axis.at(value), y) for value in values), axis.at(mean), cut, f"{row}: {text}")


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The t-interval of the mean at 95 %; ``None`` below two values."""
    if len(values) < 2:
        return None
    _, low, high = (float(found[0]) for found in intervals(np.array(values)[:, None]))
    return low, high
