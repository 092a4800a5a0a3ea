"""Progress bars on stderr, which only a terminal shows."""

import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, ProgressColumn

from kdtable.escaping import printable


class Bars(Progress):
    """Progress bars with these columns, by default rich's usual ones."""

    def __init__(self, *columns: ProgressColumn) -> None:
        console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        super().__init__(*columns, console=console, disable=not console.is_terminal)

    def notice(self, text: str) -> None:
        """Print a message above the bars."""
        self.console.print(escape(printable(text)))
