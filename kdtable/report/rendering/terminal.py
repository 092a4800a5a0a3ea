"""Tables on a terminal: in groups of columns where they are wider than it is."""

import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from kdtable.escaping import printable
from kdtable.report.rendering.grid import Grid, grid, seed_grids
from kdtable.report.result_table import ResultTable

#: Width of captions where the output is no terminal. Tables are then as wide as they are, so that they can be copied.
LINE: Final = 100
#: Characters of a column beside its text.
_FRAME: Final = 3


def terminal(tables: Sequence[ResultTable]) -> str:
    """Tables with their captions."""
    return "\n".join(_one(grid(table)) for table in tables)


def seeds(tables: Sequence[ResultTable]) -> str:
    """Every seed of tables."""
    return "\n".join(_one(one) for table in tables for one in seed_grids(table))


def _one(shown: Grid) -> str:
    width = shutil.get_terminal_size((0, 0)).columns
    buffer, widths = io.StringIO(), _widths(shown)
    console = Console(file=buffer, force_terminal=sys.stdout.isatty(), width=width or LINE)
    # Not as rich's table title, which wraps to the width of the table.
    console.print(Text(printable(shown.title), style="table.title"))
    for columns in _groups(widths, shown.keys, width):
        # No number is cut: a table with wider cells than the terminal is wider than it.
        console.width = max(sum(widths[i] for i in columns) + 1, width)
        console.print(_table(shown, columns))
    console.width = width or LINE
    for line in shown.captions:
        console.print(Text(printable(line)))
    return buffer.getvalue()


def _table(shown: Grid, columns: Sequence[int]) -> RichTable:
    table = RichTable()
    for i in columns:
        lines = "\n".join(map(printable, shown.headings[i]))
        table.add_column(Text(lines), justify="left" if i < shown.keys else "right", no_wrap=True)
    for number in range(len(shown.rows)):
        cells = [Text(_text(shown, number, i), style="bold" if (number, i) in shown.marks else "") for i in columns]
        table.add_row(*cells, end_section=number + 1 == shown.baselines)
    return table


def _text(shown: Grid, row: int, column: int) -> str:
    """A cell's text; the best has a sign beside being bold, which is lost when it is copied."""
    best = shown.marks.get((row, column)) == "best"
    return printable(shown.rows[row][column]) + (" *" if best else "")


def _widths(shown: Grid) -> list[int]:
    return [
        max(
            *(cell_len(printable(line)) for line in lines),
            *(cell_len(_text(shown, r, i)) for r in range(len(shown.rows))),
            0,
        )
        + _FRAME
        for i, lines in enumerate(shown.headings)
    ]


def _groups(widths: Sequence[int], keys: int, width: int) -> Iterator[list[int]]:
    """Indices of the columns that stand side by side, each time with the names of rows."""
    names, group = list(range(keys)), list[int]()
    for i in range(keys, len(widths)):
        if group and width and sum(widths[j] for j in (*names, *group, i)) + 1 > width:
            yield [*names, *group]
            group = []
        group.append(i)
    yield [*names, *group]
