"""Fetch teachers with a progress bar."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from kdtable.errors import BadRequest
from kdtable.escaping import printable
from kdtable.teachers.fetch import fetch
from kdtable.teachers.manifest import Published


class Downloads:
    """A display around :func:`kdtable.teachers.fetch.fetch`.

    Args:
        folder: folder of teachers.
        mirror: URL that is tried first.
        timeout: seconds to wait for a silent server.
        allow_unverified: whether to accept files over plain http without a known full checksum.

    Raises:
        BadRequest: the mirror is not a URL.
    """

    def __init__(self, folder: Path, mirror: str | None, timeout: float, *, allow_unverified: bool = False) -> None:
        if mirror is not None and not mirror.startswith(("http://", "https://")):
            raise BadRequest(f"the mirror '{mirror}' is not an http:// or https:// URL")
        self._folder, self._mirror, self._timeout = folder, mirror, timeout
        self._allow_unverified = allow_unverified
        console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def fetch(self, published: Published) -> Path:
        """Download a teacher's file unless it is there, check it against its network, and return its path.

        Raises:
            BadRequest: no source has a file that is accepted.
        """
        task = self._bar.add_task(published.name, total=None)
        return fetch(
            published,
            self._folder,
            verify=lambda path: _verify(published, path),
            mirror=self._mirror,
            allow_unverified=self._allow_unverified,
            progress=lambda done, total: self._bar.update(task, completed=done, total=total),
            notice=lambda text: self._bar.console.print(escape(printable(text))),
            timeout=self._timeout,
        )


def _verify(published: Published, path: Path) -> str | None:
    from kdtable.teachers.weights import load_into, read_weights
    from kdtable.training.build import build_teacher

    network = build_teacher(published.network, published.num_classes, published.mean, published.std)
    weights = read_weights(path)
    load_into(network, weights, name=published.network)
    return weights.run
