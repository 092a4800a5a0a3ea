"""Patience with a database's server that is away for a while, as when it is restarted."""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import sqlalchemy as sa

T = TypeVar("T")

#: Seconds for which a process that trains waits for the server.
WAIT: Final = 600.0

#: Seconds between the first two tries, and the most between any two: a server that was restarted is not stormed.
FIRST: Final = 0.1
MOST: Final = 5.0


class Patience:
    """How long to wait for a connection.

    Args:
        seconds: from the first failure; 0 for none. May be changed while another thread waits.
        tell: called once when the server does not answer, and once when it does again.
    """

    def __init__(self, seconds: float = 0.0, tell: Callable[[str], None] = lambda text: None) -> None:
        self.seconds = seconds
        self._tell = tell
        self._away = False
        self._lock = threading.Lock()  # a heart beats in a thread of its own

    def keep(self, connect: Callable[[], T], name: str) -> T:
        """What ``connect`` returns; it is called again while it fails.

        Raises:
            sqlalchemy.exc.DBAPIError: of the last call, when patience has ended.
        """
        began = time.monotonic()
        pause = FIRST
        while True:
            try:
                connected = connect()
            except sa.exc.OperationalError:
                left = self.seconds - (time.monotonic() - began)
                if left <= 0:
                    raise
                self._now(True, f"{name} does not answer: waiting for up to {left / 60:.0f} minutes")
                time.sleep(min(pause, left))
                pause = min(2 * pause, MOST)
            else:
                self._now(False, f"{name} answers again")
                return connected

    def _now(self, away: bool, text: str) -> None:
        """Tell the first time that the server is away, or is back."""
        with self._lock:
            changed, self._away = away != self._away, away
        if changed:
            self._tell(text)
