"""Read runs from a store that may not exist yet."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kdtable.store import NoStore, RunRecord, Store


def known_statuses(results: Path, ids: Iterable[str], url: str | None = None) -> dict[str, str]:
    """Status of each run by id; "missing" if the store, or the run in it, does not exist."""
    wanted = dict.fromkeys(ids, "missing")
    with opened(results, url) as store:
        return wanted if store is None else wanted | store.statuses(wanted)


def known_runs(results: Path, ids: Iterable[str], url: str | None = None) -> list[RunRecord]:
    """Records of the runs ``ids`` that exist in the store; none if there is no store."""
    with opened(results, url) as store:
        return [] if store is None else store.runs(ids)


@contextmanager
def opened(results: Path, url: str | None) -> Iterator[Store | None]:
    """Open a store for reading; ``None`` if there is none."""
    try:
        store = Store(results, url, create=False)
    except NoStore:
        yield None
        return
    with closing(store):
        yield store
