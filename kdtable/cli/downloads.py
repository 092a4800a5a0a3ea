"""Fetch teachers with a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn

from kdtable.cli.bars import Bars
from kdtable.errors import BadRequest
from kdtable.files.download import Patience
from kdtable.teachers.fetch import fetch
from kdtable.teachers.manifest import Published


@contextmanager
def downloads(
    folder: Path, mirror: str | None, timeout: float, *, allow_unverified: bool
) -> Iterator[Callable[[Published], Path]]:
    """Show progress bars; yield a function that fetches a teacher's file and returns its path.

    Args:
        folder: folder of teachers.
        mirror: URL that is tried first.
        timeout: seconds to wait for a silent server.
        allow_unverified: whether to accept files over plain http without a known full checksum.

    Raises:
        BadRequest: the mirror is not a URL.
    """
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise BadRequest(f"the mirror '{mirror}' is not an http:// or https:// URL")
    with Bars(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()) as bars:

        def get(published: Published) -> Path:
            task = bars.add_task(published.name, total=None)
            return fetch(
                published,
                folder,
                verify=lambda path: _verify(published, path),
                mirror=mirror,
                allow_unverified=allow_unverified,
                notice=bars.notice,
                patience=Patience(timeout, progress=lambda done, total: bars.update(task, completed=done, total=total)),
            )

        yield get


def _verify(published: Published, path: Path) -> str | None:
    from kdtable.teachers.weights import load_into, read_weights
    from kdtable.training.build import build_teacher

    network = build_teacher(published.network, published.num_classes, published.mean, published.std)
    weights = read_weights(path)
    load_into(network, weights, name=published.network)
    return weights.run
