"""What a store that may not exist yet knows of runs."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kdtable.store import NoStore, RunRecord, Store


def known_statuses(results: Path, ids: Iterable[str], url: str | None = None) -> dict[str, str]:
    """Status of each run in a store that may not exist yet: "missing" where it is not known."""
    wanted = dict.fromkeys(ids, "missing")
    with _opened(results, url) as store:
        return wanted if store is None else wanted | store.statuses(wanted)


def known_runs(results: Path, ids: Iterable[str], url: str | None = None) -> list[RunRecord]:
    """Those of the runs ``ids`` that a store, which may not exist yet, knows."""
    with _opened(results, url) as store:
        return [] if store is None else store.runs(ids)


@contextmanager
def _opened(results: Path, url: str | None) -> Iterator[Store | None]:
    try:
        store = Store(results, url, create=False)
    except NoStore:
        yield None
        return
    with closing(store):
        yield store
