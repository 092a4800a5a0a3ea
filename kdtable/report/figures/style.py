"""The style that all figures share: width, fonts, and looks that differ without colour."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from kdtable.escaping import printable
from kdtable.models.foreign import split_names
from kdtable.recipes.metrics import Metric

#: Width of one column of a paper, in inches.
WIDTH: Final = 3.3
#: Size of the smallest text, in points.
FONT: Final = 7

#: Okabe and Ito's colours, which differ for colour-blind readers.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666")
#: Counts without a common factor, so that looks repeat only after all of them.
_MARKERS: Final = ("o", "s", "^", "v", "D", "P", "X", "*", "<", ">", "p", "h", "d")
_LINES: Final = ((0, ()), (0, (4, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1)), (0, (7, 1.5, 1, 1.5, 1, 1.5)))

#: Of the row that others are compared with.
_BASELINE: Final = "#000000"

_SETTINGS: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are the same everywhere
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "figure.labelsize": FONT,
    "figure.titlesize": FONT,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.0,
    "legend.labelspacing": 0.3,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "text.parse_math": False,  # names of rows and files are text
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType, as publishers ask
    "svg.hashsalt": "kdtable",  # else ids are random
}


@dataclass(frozen=True, slots=True)
class Look:
    """How a row is drawn in every panel."""

    colour: str
    marker: str
    line: Any

    def handle(self, text: str, *, lines: bool = False) -> Line2D:
        """An entry of a legend: the marker, with ``lines`` on its line."""
        entry = Line2D([], [], color=self.colour, marker=self.marker, label=shown(text))
        entry.set_linestyle(self.line if lines else "none")
        return entry


@contextmanager
def styled() -> Iterator[None]:
    """Draw in matplotlib's defaults with our settings, whatever the user's own are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def settle(figure: Figure) -> None:
    """Lay the figure out, and round all places: their last bits depend on the addresses of objects."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.findobj(Axes):
        assert isinstance(axes, Axes)
        axes.set_position(Bbox.from_bounds(*(round(value, 6) for value in axes.get_position(original=True).bounds)))
    for part in figure.subfigs:
        part.bbox_relative.set_points(np.round(part.bbox_relative.get_points(), 6))
        for text in part.texts:
            x, y = text.get_position()
            text.set_position((round(x, 6), round(y, 6)))


def looks(rows: Sequence[str], baseline: str | None) -> dict[str, Look]:
    """A look for each row, in their order; the baseline is black."""
    parts = zip(cycle(COLOURS), cycle(_MARKERS), cycle(_LINES), strict=False)
    found = {row: Look(*part) for row, part in zip(rows, islice(parts, len(rows)), strict=True)}
    if baseline in found:
        found[baseline] = Look(_BASELINE, found[baseline].marker, found[baseline].line)
    return found


def sheet(height: float, handles: Sequence[Artist] = ()) -> tuple[Figure, SubFigure]:
    """A figure one column wide, and the part of it that is ``height`` inches high; below it stands a legend."""
    columns = _columns([str(handle.get_label()) for handle in handles])
    below = 0.1 + 1.35 * FONT / 72 * -(-len(handles) // columns) if handles else 0.0
    figure = Figure(figsize=(WIDTH, height + below), layout="constrained")
    parts = _two_parts(figure, height, below)
    if handles:
        parts[1].legend(handles=handles, loc="center", ncols=columns, borderaxespad=0, borderpad=0)
    return figure, parts[0]


def _two_parts(figure: Figure, *heights: float) -> list[SubFigure]:
    ratios = [max(height, 1e-6) for height in heights]
    parts: list[SubFigure] = figure.subfigures(2, squeeze=False, frameon=False, height_ratios=ratios).ravel().tolist()
    return parts


def _columns(labels: Sequence[str]) -> int:
    """The largest number of a legend's columns that fit the width."""
    for columns in range(len(labels), 1, -1):
        widest = [max(map(len, some)) for some in np.array_split(labels, columns)]  # as matplotlib fills columns
        if sum((0.6 * length + 5) * FONT for length in widest) <= WIDTH * 72:
            return columns
    return 1


def panels(part: SubFigure, titles: Sequence[str], **shared: Any) -> list[Axes]:
    """A titled panel for each of ``titles``, two side by side.

    Args:
        part: where to put them.
        titles: pairs of networks.
        shared: ``sharex`` and ``sharey`` of matplotlib's ``subplots``.
    """
    across = min(2, len(titles))
    grid: list[Axes] = part.subplots(lines_of(titles), across, squeeze=False, **shared).ravel().tolist()
    for spare in grid[len(titles) :]:
        spare.remove()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(":\n".join(split_names(shown(title))) if across > 1 else shown(title))
        axes.tick_params(labelbottom=True)  # also above a place that is empty
    return grid[: len(titles)]


def lines_of(titles: Sequence[str]) -> int:
    """Number of lines of panels."""
    return -(-len(titles) // 2)


def row_labels(axes: Axes, rows: Sequence[str]) -> None:
    """Label the y axis with rows, long ones in several lines, the first on top."""
    axes.set_yticks(range(len(rows)), [wrapped(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def rows_height(rows: Sequence[str]) -> float:
    """Inches that labelled rows need; all rows are as high as the highest label."""
    return len(rows) * (0.05 + 0.1 * max(wrapped(row).count("\n") + 1 for row in rows))


def wrapped(row: str) -> str:
    """A row's label in lines of at most 14 characters."""
    return textwrap.fill(shown(row), 14, break_long_words=False)


def axis_label(metric: Metric) -> str:
    """A metric's name and unit, for an axis."""
    return f"{metric.words} ({metric.unit})" if metric.unit else metric.words


def shown(text: str) -> str:
    """Text of a user or a paper, without control characters."""
    return printable(text)


def seeds_words(counts: Iterable[int]) -> str:
    """How many seeds stand behind the marks: ``3 seeds``, ``2 to 3 seeds``."""
    numbers = sorted(set(counts))
    some = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{some} seed{'' if numbers[-1] == 1 else 's'}"
