from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kdtable.store import Store, Worker


@pytest.fixture
def store(tmp_path: Path, store_url: str | None) -> Iterator[Store]:
    """An empty store on each kind of database."""
    with closing(Store(tmp_path / "results", store_url)) as opened:
        yield opened


@pytest.fixture
def worker(store: Store) -> Iterator[Worker]:
    """This process as one that trains."""
    with Worker(store) as entered:
        yield entered
