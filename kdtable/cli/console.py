"""Print lines and tables on stdout, wrapped to the terminal; a pipe gets full width."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.escaping import printable

#: Width for pipes: wider than any table, so that nothing wraps.
ENDLESS = 10_000


def print_table(table: Table) -> None:
    """Print a table without truncation; a terminal wraps long words, a pipe gets full width."""
    for column in table.columns:
        column.overflow = "fold"
    _console().print(table)


def print_line(text: str, *, bold: bool = False) -> None:
    """Print a line; a terminal wraps it between words, a pipe gets full width."""
    line = shown(text)
    line.stylize("bold" if bold else "")
    _console().print(line)


def shown(value: object) -> Text:
    """``value`` as plain text for a table cell or a line: without markup or control characters."""
    return Text(printable(str(value)))


def duration(seconds: float) -> str:
    """A duration in one or two units: ``40 s``, ``7 min``, ``3 h 20 min``, ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{max(seconds, 1):.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=ENDLESS)
