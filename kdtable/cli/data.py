"""``kdtable fetch-data``."""

from pathlib import Path
from typing import Annotated

import typer

from kdtable.cli import options as opt
from kdtable.errors import BadRequest, unknown

FETCHED = ("tiny-imagenet", "imagenet", "cub200", "coco", "voc")


def fetch_data(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help=f"{', '.join(FETCHED[:-1])} or {FETCHED[-1]}; others need no fetching."),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="URL|FILE|DIR",
            help="Another place of the archive; of all but tiny-imagenet the archives' folder.",
        ),
    ] = None,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Take it over plain http without a checksum in checksums.toml, or archives of another MD5.",
        ),
    ] = False,
    timeout: opt.Timeout = 30.0,
    data_root: opt.DataRoot = opt.DATA_ROOT,
) -> None:
    """Put a data set where 'kdtable run --data' finds it, and check all that can be checked of it.

    tiny-imagenet is downloaded. A broken download is continued by the next call, and a damaged archive is set aside and
    fetched again. The checksum that it has is remembered: a later change is refused. Images are decoded once, and kept
    beside the archive.

    imagenet (an account is needed to get it) and cub200 are unpacked from the official archives in --from DIR:
    ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or CUB_200_2011.tgz.

    coco (19 GB; while it is unpacked, twice that) and voc (2.8 GB) are downloaded archive by archive. Each is checked,
    unpacked, and deleted; the next call goes on where one ended.

    Example: kdtable fetch-data tiny-imagenet --allow-unverified
    """
    from kdtable.data.spec import DETECTION, STREAMED

    if name not in FETCHED:
        raise unknown("data set to fetch", name, FETCHED)
    if name in STREAMED:
        path = _unpacked(name, source, data_root, allow_unverified=allow_unverified)
        typer.echo(f"{name}: {path}, for --data {name}:{path}")
        return
    if name in DETECTION:
        path = _with_boxes(name, source, data_root, timeout, allow_unverified=allow_unverified)
        typer.echo(f"{name}: {path}, for --data {name}:{path}")
        return
    from kdtable.cli.bars import Bars
    from kdtable.data.fetch import OFFICIAL, fetch
    from kdtable.data.names import resolve
    from kdtable.data.spec import Listener
    from kdtable.files.download import Patience

    with Bars() as bars:
        download, decoding = bars.add_task("downloading", total=None), bars.add_task("decoding", total=None)
        path = fetch(
            resolve(name),
            data_root,
            Listener(lambda done, total: bars.update(decoding, completed=done, total=total), bars.notice),
            source=source or OFFICIAL,
            allow_unverified=allow_unverified,
            patience=Patience(timeout, progress=lambda done, all_: bars.update(download, completed=done, total=all_)),
        )
    typer.echo(f"{name}: {path}")


def _unpacked(name: str, source: str | None, data_root: Path, *, allow_unverified: bool) -> Path:
    """Unpack the user's archives of a data set and return its folder."""
    if source is None:
        raise BadRequest(f"{name} cannot be downloaded here: get its archives, and name their folder with --from DIR")
    from kdtable.cli.bars import Bars
    from kdtable.data.spec import Listener
    from kdtable.data.unpack import unpack

    with Bars() as bars:
        task = bars.add_task("unpacking", total=None)
        listener = Listener(lambda done, total: bars.update(task, completed=done, total=total), bars.notice)
        return unpack(name, Path(source).expanduser(), data_root, listener, allow_unverified=allow_unverified)


def _with_boxes(name: str, source: str | None, data_root: Path, timeout: float, *, allow_unverified: bool) -> Path:
    """Download a detection set and return its folder."""
    from kdtable.cli.bars import Bars
    from kdtable.data.detection.fetch import fetch
    from kdtable.data.spec import Listener
    from kdtable.files.download import Patience

    with Bars() as bars:
        download, unpacking = bars.add_task("downloading", total=None), bars.add_task("unpacking", total=None)
        return fetch(
            name,
            data_root,
            Listener(lambda done, _: bars.update(unpacking, completed=done), bars.notice),
            source=source,
            allow_unverified=allow_unverified,
            patience=Patience(timeout, progress=lambda done, all_: bars.update(download, completed=done, total=all_)),
        )
