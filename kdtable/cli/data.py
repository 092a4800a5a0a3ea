"""``kdtable fetch-data``."""

import sys
from typing import Annotated

import typer

from kdtable.cli import options as opt
from kdtable.data.spec import resolve
from kdtable.errors import unknown

FETCHED = ("tiny-imagenet",)


def fetch_data(
    name: Annotated[str, typer.Argument(help="tiny-imagenet; the others need no fetching.")],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL|FILE", help="Another place of the archive than its official one."),
    ] = None,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Take it over plain http, as its official place has it, even if no checksum is in checksums.toml.",
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a silent server.")] = 30.0,
    data_root: opt.DataRoot = opt.DATA_ROOT,
) -> None:
    """Download a data set, check all of its images, and put it where 'kdtable run --data' finds it.

    A broken download is continued by the next call, and a damaged archive is set aside and fetched again. The checksum
    that it has is remembered: a later change is refused. Images are decoded once, and kept beside the archive.

    Example: kdtable fetch-data tiny-imagenet --allow-unverified
    """
    if name not in FETCHED:
        raise unknown("data set to fetch", name, FETCHED)
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from kdtable.data.fetch import OFFICIAL, Listener, fetch
    from kdtable.report.escape import printable

    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        download, decoding = bar.add_task("downloading", total=None), bar.add_task("decoding", total=None)
        listener = Listener(
            downloaded=lambda done, total: bar.update(download, completed=done, total=total),
            decoded=lambda done, total: bar.update(decoding, completed=done, total=total),
            notice=lambda text: bar.console.print(escape(printable(text))),
        )
        path = fetch(
            resolve(name),
            data_root,
            listener,
            source=source or OFFICIAL,
            allow_unverified=allow_unverified,
            timeout=timeout,
        )
    typer.echo(f"{name}: {path}")
