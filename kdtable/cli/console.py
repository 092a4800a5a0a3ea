"""Lines and tables on stdout: as wide as the terminal, and as wide as they need to be where there is none."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.escaping import printable

#: Wider than any table here; a pipe has no edge to wrap at.
ENDLESS = 10_000


def print_table(table: Table) -> None:
    """Print a table, of which nothing is cut: a terminal breaks long words, a pipe nothing."""
    for column in table.columns:
        column.overflow = "fold"
    _console().print(table)


def print_line(text: str, *, bold: bool = False) -> None:
    """Print a line of words; a terminal breaks it between them, a pipe nowhere."""
    line = shown(text)
    line.stylize("bold" if bold else "")
    _console().print(line)


def shown(value: object) -> Text:
    """``value`` for a cell or a line: no markup in it is obeyed, and no control character reaches the terminal."""
    return Text(printable(str(value)))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=ENDLESS)
