"""Tables on a terminal: in groups of columns where they are wider than it is."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.cells import cell_len
from tabulate import SEPARATING_LINE, tabulate

from kdtable.escaping import printable
from kdtable.report.rendering.grid import Grid, grid, seed_grids
from kdtable.report.result_table import ResultTable

#: Width of captions where the output is no terminal. Tables are then as wide as they are, so that they can be copied.
LINE: Final = 100
#: Characters of a column beside its text.
_FRAME: Final = 3
_BOLD: Final = "\x1b[1m{}\x1b[0m"


def terminal(tables: Sequence[ResultTable]) -> str:
    """Tables with their captions."""
    return _terminal(map(grid, tables))


def seeds(tables: Sequence[ResultTable]) -> str:
    """Every seed of tables."""
    return _terminal(one for table in tables for one in seed_grids(table))


def _terminal(grids: Iterable[Grid]) -> str:
    width = shutil.get_terminal_size((0, 0)).columns
    return "\n\n".join(_one(shown, width) for shown in grids)


def _one(shown: Grid, width: int) -> str:
    cells = [[_text(shown, i, j) for j in range(len(shown.headings))] for i in range(len(shown.rows))]
    headings = [tuple(map(printable, lines)) for lines in shown.headings]
    parts = [_lines(shown.title, width)]
    for name, block in _blocks(headings, cells, shown.keys, width):
        # The name of a block stands above it, where it widens no column.
        own = [lines[1:] if name and j >= shown.keys else lines for j, lines in enumerate(headings)]
        widths = _widths(own, cells)
        for group in _groups(widths, shown.keys, block, width):
            parts += [_lines(name, width)] if name else []
            parts.append(_drawn(shown, own, cells, group))
    return "\n".join([*parts, *(_lines(line, width) for line in shown.captions)])


def _drawn(
    shown: Grid, headings: Sequence[tuple[str, ...]], cells: Sequence[Sequence[str]], group: Sequence[int]
) -> str:
    """The columns of a group, with rules below headings and baselines."""
    rows = [[_styled(shown, i, j, row[j]) for j in group] for i, row in enumerate(cells)]
    parted = [rows[: shown.baselines], rows[shown.baselines :]]
    # As rows, since tabulate makes columns wider than their headings.
    whole = [texts for row in _heads(headings) if any(texts := [row[j] for j in group])]
    for part in filter(None, parted):
        whole += [SEPARATING_LINE, *part]  # type: ignore[list-item]
    sides = ["left" if j < shown.keys else "right" for j in group]
    return tabulate(whole, tablefmt="simple_outline", disable_numparse=True, colalign=sides)


def _heads(headings: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """The lines of headings, the last ones side by side."""
    height = max(map(len, headings))
    return [[lines[k - height] if len(lines) + k >= height else "" for lines in headings] for k in range(height)]


def _widths(headings: Sequence[tuple[str, ...]], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, texts)) + _FRAME for texts in zip(*_heads(headings), *cells, strict=True)]


def _blocks(
    headings: Sequence[tuple[str, ...]], cells: Sequence[Sequence[str]], keys: int, width: int
) -> Iterator[tuple[str, list[int]]]:
    """Columns that stay together, and the name that is above them instead of in each heading.

    A table that fits is one block without a name, else each pair's metrics are a block.
    """
    columns = range(keys, len(headings))
    named = all(len(headings[j]) > 1 for j in columns)
    if not named or not width or sum(_widths(headings, cells)) + 1 <= width:
        yield "", list(columns)
        return
    for name, block in groupby(columns, key=lambda j: headings[j][0]):
        yield name, list(block)


def _text(shown: Grid, row: int, column: int) -> str:
    """A cell's text; the best has a sign beside being bold, which is lost when it is copied."""
    best = shown.marks.get((row, column)) == "best"
    return printable(shown.rows[row][column]) + (" *" if best else "")


def _styled(shown: Grid, row: int, column: int, text: str) -> str:
    return _BOLD.format(text) if (row, column) in shown.marks and sys.stdout.isatty() else text


def _lines(text: str, width: int) -> str:
    return textwrap.fill(printable(text), width or LINE, break_long_words=False, break_on_hyphens=False)


def _groups(widths: Sequence[int], keys: int, columns: Sequence[int], width: int) -> Iterator[list[int]]:
    """Indices of the columns that stand side by side, each time with the names of rows."""
    names, group = list(range(keys)), list[int]()
    for i in columns:
        if group and width and sum(widths[j] for j in (*names, *group, i)) + 1 > width:
            yield [*names, *group]
            group = []
        group.append(i)
    yield [*names, *group]
