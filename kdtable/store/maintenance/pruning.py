"""Remove files that finished runs no longer need."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from kdtable.errors import Trouble
from kdtable.store import shared
from kdtable.store.files import CHECKPOINT, EPOCHS, OLDER, PREVIOUS, STUDENT, leftovers, set_aside
from kdtable.store.results import Store
from kdtable.store.rows import batches
from kdtable.store.schema import runs

LEFTOVERS: Final = "half-written files"
SINGLE_EPOCHS: Final = "checkpoints of single epochs"
STUDENTS: Final = "students"


@dataclass(frozen=True, slots=True)
class Spare:
    """A file that can be removed.

    Attributes:
        run: id of its run.
        kind: what it is, in the plural.
        path: its path, or its URL (``--checkpoints``).
        size: in bytes.
    """

    run: str
    kind: str
    path: Path | str
    size: int


def spare(store: Store, keep: str | None = None) -> list[Spare]:
    """List files of finished runs that can be removed.

    Args:
        store: only its own runs are considered, since other stores may use the same folder.
        keep: "last" keeps every run's student, "none" no weights; ``None`` keeps what each run was trained to keep.
    """
    with store.database.read() as db:
        done = sa.select(runs.c.id, runs.c.kept).where(runs.c.status == "done").order_by(runs.c.key)
        found = [tuple(row) for row in db.execute(done)]
        elsewhere = shared.of_finished(db)
    here = [
        Spare(run_id, kind, path, path.stat().st_size)
        for run_id, kept in found
        for kind, path in _spare_files(store.run_folder(run_id), keep or kept)
        if path.is_file()
    ]
    at_urls = [
        Spare(file.run, kind, file.url, file.size)
        for file, kept, needed in elsewhere
        if (kind := _spare_kind(file, keep or kept) if needed else LEFTOVERS)
    ]
    return here + at_urls


def _spare_kind(file: shared.SharedFile, keep: str) -> str | None:
    """What a finished run's file at a URL is, if that is not to be kept."""
    if file.kind == shared.CHECKPOINT:
        return SINGLE_EPOCHS if keep != "all" else None
    return STUDENTS if keep == "none" else None


def _spare_files(folder: Path, keep: str) -> Iterator[tuple[str, Path]]:
    yield from ((LEFTOVERS, path) for path in leftovers(folder))
    yield from (("damaged files that were set aside", path) for path in set_aside(folder))
    yield from (("checkpoints of finished runs", folder / name) for name in (CHECKPOINT, PREVIOUS))
    if keep != "all":
        yield from ((SINGLE_EPOCHS, path) for path in sorted((folder / EPOCHS).glob("*.pt")))
        yield from (
            ("checkpoints of older results", path) for path in sorted((folder / OLDER).glob(f"*/{EPOCHS}/*.pt"))
        )
    if keep == "none":
        yield STUDENTS, folder / STUDENT
        yield from (("students of older results", path) for path in sorted((folder / OLDER).glob(f"*/{STUDENT}")))


def prune(store: Store, files: Iterable[Spare], keep: str | None = None) -> None:
    """Remove ``files``, which :func:`spare` listed for the same ``keep``.

    Raises:
        Trouble: a file cannot be removed.
    """
    chosen = list(files)
    urls = [file.path for file in chosen if isinstance(file.path, str)]
    if keep:
        # Database first: it may name fewer files than there are, never more.
        lasting = ("none",) if keep == "last" else ()
        with store.database.write() as db:
            for some in batches(file.run for file in chosen if file.kind in (STUDENTS, SINGLE_EPOCHS)):
                these = (runs.c.id.in_(some), runs.c.kept.not_in(lasting))
                db.execute(runs.update().where(*these).values(kept=keep))
    paths = [file.path for file in chosen if isinstance(file.path, Path)]
    try:
        for path in paths:
            path.unlink(missing_ok=True)
        if urls:
            with store.database.write() as db:
                shared.let_go(db, urls)
            shared.sweep(store, {file.run for file in chosen})
    except OSError as error:
        raise Trouble(f"{error.filename} cannot be removed ({error.strerror}): see to that, and try again") from error
    for folder in {path.parent for path in paths}:
        if folder.name == EPOCHS and not any(folder.iterdir()):
            folder.rmdir()
