"""A server that goes away for a while, as when it is restarted."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from kdtable.errors import BadRequest, Trouble
from kdtable.store import Store, Worker
from kdtable.store.database import Lost
from kdtable.store.patience import Patience
from kdtable.store.schema import runs
from tests import postgres
from tests.store.samples import ORIGIN, row


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    """A server that no other test uses, since it is stopped."""
    with postgres.serve() as started:
        yield started


@pytest.fixture
def url(server: postgres.Server) -> Iterator[str]:
    yield server.new_database()
    if not server.answers():
        server.start()


def _soon(server: postgres.Server) -> threading.Thread:
    """Start the server again in a moment."""
    started = threading.Timer(0.5, server.start)
    started.start()
    return started


def test_a_transaction_that_begins_while_the_server_is_away(server: postgres.Server, url: str, tmp_path: Path) -> None:
    told: list[str] = []
    with closing(Store(tmp_path, url, patience=Patience(600, told.append))) as store, Worker(store) as worker:
        store.plan([row("r1")])
        server.stop()
        again = _soon(server)
        assert worker.claim(["r1"], ORIGIN) == ["r1"]
        assert store.statuses(["r1"]) == {"r1": "running"}
        again.join()
    assert [text.partition("postgresql")[0] for text in told] == ["the store ", "the store "]
    assert told[0].endswith("does not answer: waiting for up to 10 minutes")
    assert told[1].endswith("answers again")


def test_a_store_that_is_opened_while_the_server_is_away(server: postgres.Server, url: str, tmp_path: Path) -> None:
    Store(tmp_path, url).close()
    server.stop()
    again = _soon(server)
    with closing(Store(tmp_path, url, patience=Patience(600))) as store:
        assert store.runs() == []
    again.join()


def test_without_patience_it_is_said_at_once(server: postgres.Server, url: str, tmp_path: Path) -> None:
    with closing(Store(tmp_path, url)) as store:
        server.stop()
        with pytest.raises(BadRequest, match=r"cannot be read .*: see that its server runs"):
            store.runs()
        with pytest.raises(Trouble, match=r"cannot be written .*: see that its server runs"):
            store.plan([row("r1")])
        with pytest.raises(BadRequest, match="cannot be reached"):
            Store(tmp_path, url)


def test_patience_ends(server: postgres.Server, url: str, tmp_path: Path) -> None:
    patience = Patience(0.3)
    with closing(Store(tmp_path, url, patience=patience)) as store:
        server.stop()
        with pytest.raises(BadRequest, match="see that its server runs"):
            store.runs()
        patience.seconds = 600
        threading.Timer(0.3, setattr, (patience, "seconds", 0.0)).start()  # as an interruption does
        began = time.monotonic()
        with pytest.raises(BadRequest, match="see that its server runs"):
            store.runs()
        assert time.monotonic() - began < 300


def _restart_within(transaction: AbstractContextManager[sa.Connection], server: postgres.Server) -> None:
    with transaction as db:
        db.execute(sa.select(runs.c.id)).all()
        server.stop()
        server.start()
        db.execute(sa.select(runs.c.id)).all()


def test_a_connection_that_breaks_within_a_transaction(server: postgres.Server, url: str, tmp_path: Path) -> None:
    with closing(Store(tmp_path, url, patience=Patience(600))) as store:
        store.plan([row("r1")])
        for kind in (store.database.write, store.database.read):
            with pytest.raises(Lost, match="see that its server runs"):
                _restart_within(kind(), server)
        assert store.statuses(["r1"]) == {"r1": "planned"}
