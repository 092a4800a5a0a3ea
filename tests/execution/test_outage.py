"""Training with a PostgreSQL that goes away in the middle."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kdtable.execution.run_grid import Outcome
from kdtable.store import Store, Worker
from kdtable.store.claims import Held
from kdtable.store.database import Lost
from tests import postgres
from tests.cli.command import assert_same_numbers
from tests.execution.grids import Heard, plan, train, write_grid


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    """A server that no other test uses, since it is stopped."""
    with postgres.serve() as started:
        yield started


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a grid that was trained without any trouble."""
    folder = tmp_path_factory.mktemp("alone")
    write_grid(folder)
    train(plan([1], folder), folder / "alone")
    return folder


class Once:
    """Calls a function the first time that it is asked to."""

    def __init__(self, what: Any) -> None:
        self._what = what

    def __call__(self) -> None:
        what, self._what = self._what, lambda: None
        what()


def _assert_whole(results: Path, url: str, grid: Path) -> None:
    assert_same_numbers(results, grid / "alone", url)
    with closing(Store(results, url)) as store, store.database.read() as db:
        assert not db.exec_driver_sql("SELECT * FROM workers").all()
        assert db.exec_driver_sql("SELECT count(*) FROM runs WHERE status = 'done'").scalar() == 2
    assert {file.name for file in results.glob("runs/*/*")} == {"student.safetensors"}


def test_a_restart_between_two_epochs(server: postgres.Server, grid: Path, tmp_path: Path) -> None:
    class Restarting(Heard):
        def epoch(self, *_: Any) -> None:
            restart()

    def _restart() -> None:
        server.stop()
        threading.Timer(0.5, server.start).start()

    restart, url, heard = Once(_restart), server.new_database(), Restarting()
    assert train(plan([1], grid), tmp_path / "results", heard, url=url) == Outcome(2, 0, 0)
    assert [text.rpartition("db ")[2].rpartition("/test")[2][2:] for (text,) in heard.of("note")] == [
        "does not answer: waiting for up to 10 minutes",
        "answers again",
    ]
    _assert_whole(tmp_path / "results", url, grid)


def test_a_restart_amid_the_transaction_of_an_epoch(
    server: postgres.Server, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is in place by then, and the epoch is not in the store: the run goes on from the checkpoint."""
    plain, url = Held.record, server.new_database()

    def record(held: Held, *arguments: Any) -> None:
        plain(held, *arguments)
        restart()

    restart = Once(lambda: (server.stop(), server.start()))
    monkeypatch.setattr(Held, "record", record)
    heard = Heard()
    assert train(plan([1], grid), tmp_path / "results", heard, url=url) == Outcome(2, 0, 0)
    assert heard.of("failed") == []
    _assert_whole(tmp_path / "results", url, grid)


def test_a_claim_of_which_no_word_comes(
    server: postgres.Server, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was committed, and the connection broke before the server said so."""
    plain, url = Worker.claim, server.new_database()

    def claim(worker: Worker, *arguments: Any) -> list[str]:
        claimed = plain(worker, *arguments)
        lose()
        return claimed

    def _lose() -> None:
        raise Lost("the store cannot be written")

    lose = Once(_lose)
    monkeypatch.setattr(Worker, "claim", claim)
    assert train(plan([1], grid), tmp_path / "results", url=url) == Outcome(2, 0, 0)
    _assert_whole(tmp_path / "results", url, grid)
