"""Stores on PostgreSQL: their addresses, and what a server may do."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from kdtable.errors import BadRequest, Trouble
from kdtable.store import NoStore, Store, Worker, address, database
from kdtable.store.address import without_password
from kdtable.store.schema import runs
from tests.postgres import Server
from tests.store.samples import ORIGIN, row, stranger


@pytest.fixture
def url(postgres_server: Server) -> str:
    return postgres_server.new_database()


@pytest.fixture
def store(tmp_path: Path, url: str) -> Iterator[Store]:
    with closing(Store(tmp_path / "results", url)) as opened:
        yield opened


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:secret@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql+psycopg://me:se/cr?et@host:5/db", "postgresql+psycopg://me:***@host:5/db"),
        ("postgresql+psycopg://me:secret@secret@host/db", "postgresql+psycopg://me:***@host/db"),
        ("--store=postgresql://me:secret@host/db", "--store=postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
        ("npz:secret.npz", "npz:secret.npz"),
        ("resnet56:resnet20", "resnet56:resnet20"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


@given(password=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1))
def test_no_password_is_shown(password: str) -> None:
    assert without_password(f"postgresql+psycopg://me:<{password}>@host/db") == "postgresql+psycopg://me:***@host/db"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sqlite:///results.sqlite", "not a sqlite URL; for SQLite leave it out"),
        ("mysql://me:secret@host/db", "not a mysql URL"),
        ("postgresql+psycopg2://me:secret@host/db", "not a postgresql\\+psycopg2 URL"),
        ("results", "no such URL"),
        ("", "no such URL"),
        ("postgresql+psycopg://me:secret@host:port/db", "no such URL"),
        ("postgresql+psycopg://me:sec@ret@host/db", "write it as %40"),
    ],
)
def test_an_address_that_is_none(text: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told) as refused:
        address.parse(text)
    assert "secret" not in str(refused.value)
    assert "ret@" not in str(refused.value)


def test_the_plain_name_of_the_dialect_will_do() -> None:
    assert address.parse("postgresql://me@host/db").drivername == "postgresql+psycopg"


def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"pip install 'kdtable\[postgres\]'"):
        address.parse("postgresql://me@host/db")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    for create in (True, False):
        with pytest.raises(BadRequest) as refused:
            Store(tmp_path / "results", "postgresql+psycopg://me:secret@127.0.0.1:9/db", create=create)
        assert "postgresql+psycopg://me:***@127.0.0.1:9/db cannot be reached" in str(refused.value)
        assert "secret" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_database_that_is_not_there(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadRequest, match=r'cannot be reached .*database "elsewhere" does not exist'):
        Store(tmp_path / "results", sa.make_url(url).set(database="elsewhere").render_as_string())


# --- what is in it ----------------------------------------------------------------------------------------------


def test_nothing_is_made_by_readers(tmp_path: Path, url: str) -> None:
    with pytest.raises(NoStore, match="--store"):
        Store(tmp_path / "results", url, create=False)
    with pytest.raises(NoStore):
        Store(tmp_path / "results", url, create=False)
    assert not (tmp_path / "results").exists()


def test_another_programs_database(tmp_path: Path, url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as db:
        db.execute(sa.text("CREATE TABLE recipes (name text)"))
    for create in (True, False):
        with pytest.raises(BadRequest, match="another program"):
            Store(tmp_path / "results", url, create=create)
    with engine.begin() as db:
        assert sa.inspect(db).get_table_names() == ["recipes"]
    engine.dispose()


def test_another_versions_store(store: Store, url: str) -> None:
    with store.database.write() as db:
        db.execute(sa.text("UPDATE meta SET schema_version = schema_version + 1"))
    with pytest.raises(BadRequest, match="another version of kdtable: name another --store"):
        Store(store.folder, url)


def test_a_folder_for_checkpoints_is_needed(tmp_path: Path, url: str) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(BadRequest, match="cannot be written to"):
        Store(tmp_path / "results", url)


def test_a_connection_that_broke_is_made_again(store: Store, url: str) -> None:
    store.plan([row()])
    engine = sa.create_engine(url)
    with engine.begin() as db:
        others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        assert db.execute(sa.text(f"{others} AND pid != pg_backend_pid()")).scalar_one() > 0
    engine.dispose()
    assert store.statuses(["r1"]) == {"r1": "planned"}


def test_a_process_suspended_amid_a_transaction_stops_nobody(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE", 1)
    with closing(Store(tmp_path / "results", url)) as suspended:
        monkeypatch.undo()

        def begin_and_stop() -> None:
            with suspended.database.write(alone=True) as db, closing(Store(tmp_path / "results", url)) as other:
                other.plan([row("r1")])  # waits until the server has had enough
                db.execute(sa.text("SELECT 1"))

        with pytest.raises(Trouble, match="cannot be written"):
            begin_and_stop()
        assert suspended.statuses(["r1"]) == {"r1": "planned"}


def test_a_suspended_writer_keeps_its_run_and_no_other(store: Store) -> None:
    """Stopped amid a transaction, a process holds its rows' locks: nobody may have to wait for them."""
    store.plan([row("r1"), row("r2")])
    with closing(Store(store.folder, store.database.engine.url.render_as_string(hide_password=False))) as again:
        suspended = stranger(store, "r1", started="1", machine="elsewhere")
        with again.database.write() as db, Worker(store) as worker:
            db.execute(runs.update().where(runs.c.claimed_by == suspended).values(reason="half"))
            worker._watch.lease = 0.0  # everybody else counts as dead
            assert worker.claim(["r1", "r2"], ORIGIN) == ["r2"]
        with Worker(store) as worker:
            worker._watch.lease = 0.0
            assert worker.claim(["r1"], ORIGIN) == ["r1"]
