"""Tables on stdout: as wide as the terminal, and as wide as they need to be where there is none."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.report.escape import printable

#: Wider than any table here; a pipe has no edge to wrap at.
ENDLESS = 10_000


def print_table(table: Table) -> None:
    """Print a table; in a pipe nothing of it is cut or wrapped."""
    console = Console()
    (console if console.is_terminal else Console(width=ENDLESS)).print(table)


def shown(value: object) -> Text:
    """``value`` for a cell or a line: no markup in it is obeyed, and no control character reaches the terminal."""
    return Text(printable(str(value)))
