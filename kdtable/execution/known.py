"""What a store that may not exist yet knows of runs."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from kdtable.store.database import NoStore
from kdtable.store.results import Store


def known_statuses(results: Path, ids: Iterable[str], url: str | None = None) -> dict[str, str]:
    """Status of each run in a store that may not exist yet: "missing" where it is not known."""
    wanted = dict.fromkeys(ids, "missing")
    return wanted | {run_id: row["status"] for run_id, row in _known(results, wanted, url).items()}


def _known(results: Path, ids: Iterable[str], url: str | None) -> dict[str, Mapping[str, Any]]:
    """The columns of each run that a store, which may not exist yet, knows."""
    try:
        store = Store(results, url, create=False)
    except NoStore:
        return {}
    with closing(store):
        return store.known(ids)
