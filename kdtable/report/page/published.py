"""Ours against the published numbers: a scatter, and a list of differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Final

from kdtable.report.page.axes import Axis
from kdtable.report.page.seeds import interval
from kdtable.report.page.views import Cell, View, short_pair
from kdtable.report.page.words import counted, number, signed

LEFT: Final = 44
SIZE: Final = 320
TOP: Final = 8


@dataclass(frozen=True, slots=True)
class Against:
    """A number of ours beside the published one; ``verdict`` is said of our 95 % interval."""

    row: str
    pair: str
    ours: str
    published: str
    difference: str
    verdict: str
    x: int
    y: int
    size: float


@dataclass(frozen=True, slots=True)
class Published:
    """All numbers beside published ones, the largest difference first."""

    numbers: tuple[Against, ...]
    x_ticks: Sequence[tuple[int, str]]
    y_ticks: Sequence[tuple[int, str]]
    diagonal: tuple[int, int, int, int]
    words: str


def published(view: View) -> Published | None:
    """Our numbers beside the published ones; ``None`` where there are none."""
    lines = [line for line in view.sheet.cells.values() if isfinite(line.difference)]
    if not lines:
        return None
    both = [value for line in lines for value in (line.mean, line.published)]
    x, y = Axis.around(both, LEFT, LEFT + SIZE), Axis.around(both, TOP + SIZE, TOP)
    lines.sort(key=lambda line: -abs(line.difference))
    numbers = tuple(_against(view, line, x, y) for line in lines)
    return Published(numbers, x.ticks(), y.ticks(), (x.start, y.start, x.end, y.end), _words(lines))


def _against(view: View, line: Cell, x: Axis, y: Axis) -> Against:
    values = list(view.sheet.seeds.get((line.row, line.column), {}).values()) if line.row != "teacher" else []
    return Against(
        line.row,
        short_pair(view.table.headings[line.column]),
        number(line.mean),
        number(line.published),
        signed(line.difference),
        _verdict(values, line.published, teacher=line.row == "teacher"),
        x.at(line.published),
        y.at(line.mean),
        abs(line.difference),
    )


def _verdict(values: Sequence[float], printed: float, *, teacher: bool) -> str:
    """Where the published number lies, seen from our interval."""
    if teacher:
        return "measured, not trained"
    ends = interval(values)
    if ends is None:
        return "one seed: no interval"
    low, high = ends
    if low <= printed <= high:
        return "inside our interval"
    return "below our interval" if printed < low else "above our interval"


def _words(lines: Sequence[Cell]) -> str:
    mean = fmean(abs(line.difference) for line in lines)
    return f"{counted(len(lines), 'number')} beside published ones; the mean absolute difference is {mean:.2f}."
