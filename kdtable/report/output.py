"""Where a report goes: standard output, a file, or a terminal that is redrawn."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kdtable.errors import BadRequest

#: Seconds between two drawings.
PAUSE: Final = 5.0
#: What makes text on a terminal bold, or ends that.
_STYLE: Final = re.compile(r"\x1b\[\d*m")


def written(text: str, path: Path | None) -> None:
    """Print a report, or replace a file by it once it is whole.

    Raises:
        BadRequest: the file cannot be written.
    """
    whole = text.rstrip("\n") + "\n"
    if path is None:
        sys.stdout.write(whole)
        return
    from kdtable.files.atomic import written_whole

    try:
        with written_whole(path) as file:
            file.write(_STYLE.sub("", whole).encode())
    except OSError as error:
        raise BadRequest(f"{path} cannot be written ({error.strerror}): name another --output") from error


def watched(text: Callable[[], str], pause: float = PAUSE) -> None:
    """Draw a report again and again, until Ctrl-C; it then stays on the terminal.

    Args:
        text: makes the report.
        pause: seconds between two drawings.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    shown = text()
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                live.update(Text.from_ansi(shown), refresh=True)
                time.sleep(pause)
                shown = text()
    except KeyboardInterrupt:
        written(shown, None)
