"""Opening SQLite stores: new, old, damaged, foreign, read-only."""

import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kdtable.errors import BadRequest
from kdtable.store import FILE_NAME, SCHEMA_VERSION, Damaged, NoStore, Store, Worker, database
from kdtable.store.overview import overview
from kdtable.store.schema import SHAPE
from tests.store.samples import ORIGIN, add, record, row, top1s


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "results")) as opened:
        yield opened


def test_schema(store: Store) -> None:
    with closing(sqlite3.connect(store.folder / FILE_NAME)) as db:
        tables = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
        assert tables == {"meta", "protocols", "origins", "workers", "runs", "results", "histories", "teachers"}
        assert db.execute("select * from meta").fetchall() == [(SCHEMA_VERSION, SHAPE)]
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)


def test_an_absent_store_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(NoStore, match="no results store"):
        Store(tmp_path / "results", create=False)
    assert list(tmp_path.iterdir()) == []


def test_readers_change_nothing(store: Store) -> None:
    store.plan([row()])
    with closing(Store(store.folder, create=False)) as reader, pytest.raises(BadRequest, match="readonly"):
        reader.plan([row("r2")])
    assert store.statuses(["r1", "r2"]) == {"r1": "planned"}


#: Of a store of today, and of one of earlier versions of kdtable.
OTHERS = {
    "newer": f"update meta set schema_version = {SCHEMA_VERSION + 1}",
    "of other columns": "update meta set shape = '0123456789abcdef'",
    "of before there were shapes": "drop table meta; create table meta (schema_version integer); "
    "insert into meta values (1)",
    "without a version": "delete from meta",
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_versions_store_is_refused_and_left_untouched(case: str, store: Store) -> None:
    path = store.folder / FILE_NAME
    store.plan([row()])
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(OTHERS[case])
    store.close()
    before = path.read_bytes()
    for create in (True, False):
        with pytest.raises(BadRequest) as refused:
            Store(store.folder, create=create)
        told = "is of another version of kdtable: name another --results, or move it away"
        assert str(refused.value) == f"the store {path} {told}"
    assert path.read_bytes() == before


def test_reading_while_another_connection_writes(store: Store) -> None:
    store.plan([row()])
    with closing(sqlite3.connect(store.folder / FILE_NAME, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        writer.execute("delete from runs")
        with closing(Store(store.folder, create=False)) as reader:
            assert reader.statuses(["r1"]) == {"r1": "planned"}
        writer.execute("commit")
    assert store.statuses(["r1"]) == {}


OPENER = "import sys; from pathlib import Path; from kdtable.store import Store; Store(Path(sys.argv[1])).plan([])"


def test_processes_that_make_one_store_together(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENER, str(tmp_path / "results")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate()[1] for process in started]
    assert errors == [""] * 4
    with closing(Store(tmp_path / "results", create=False)) as store:
        assert store.runs() == []


def test_threads_that_make_one_store_together(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            Store(tmp_path / "results").close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


#: What means something in a URL, in a pattern of names, or in SQL.
ODD_NAMES = ("a?b", "a#b", "p%41", "a&mode=memory", "a b", "it's", 'say "hi"', "Größe", "[a]*", "file:a")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_store_is_in_its_folder_whatever_that_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / name, Path(name)):
        monkeypatch.chdir(tmp_path)
        with closing(Store(folder)) as made:
            made.plan([row()])
            with closing(Store(folder, create=False)) as reader:
                assert reader.statuses(["r1"]) == {"r1": "planned"}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name.partition("-")[0] for path in (tmp_path / name).iterdir()} == {FILE_NAME}


# --- what is no store -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database_is_left_untouched(tmp_path: Path, create: bool) -> None:
    path = tmp_path / FILE_NAME
    content = b"these are my notes, not a database\n" * 300
    path.write_bytes(content)
    with pytest.raises(BadRequest, match="cannot be read as a results store"):
        Store(tmp_path, create=create)
    assert path.read_bytes() == content


@pytest.mark.parametrize("create", [True, False])
def test_a_truncated_store_is_refused(store: Store, create: bool) -> None:
    store.plan([row(f"r{i}") for i in range(300)])
    store.close()
    path = store.folder / FILE_NAME
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(Damaged, match="is damaged"):
        Store(store.folder, create=create)
    assert path.stat().st_size == 1500


@pytest.mark.parametrize("create", [True, False])
def test_a_store_that_lost_its_content_is_not_begun_anew(store: Store, create: bool) -> None:
    store.close()
    (store.folder / "runs" / "r1").mkdir(parents=True)
    (store.folder / FILE_NAME).write_bytes(b"")
    with pytest.raises(BadRequest):
        Store(store.folder, create=create)
    assert (store.folder / FILE_NAME).read_bytes() == b""


def read_or_write(folder: Path, *, create: bool) -> None:
    with closing(Store(folder, create=create)) as opened:
        (opened.plan([row("new")]) if create else opened.runs())


def test_a_store_that_is_damaged_inside(store: Store) -> None:
    store.plan([row(f"r{i}", reason="x" * 500) for i in range(300)])
    store.close()
    path = store.folder / FILE_NAME
    content = bytearray(path.read_bytes())
    pages = len(content) // 4096
    for page in range(pages // 2, pages):
        content[page * 4096 : page * 4096 + 64] = bytes(range(64))
    path.write_bytes(content)
    for create in (True, False):
        with pytest.raises(Damaged, match=f"{FILE_NAME} is damaged .* restore it from a copy"):
            read_or_write(store.folder, create=create)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table recipes (name text)")
    for create in (True, False):
        with pytest.raises(BadRequest, match="another program"):
            Store(tmp_path, create=create)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select name from sqlite_master").fetchall() == [("recipes",)]


def test_a_store_whose_making_was_cut_short_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def cut_short(db: Any) -> None:
        create(db)
        raise Killed

    create = database.create
    with monkeypatch.context() as patched:
        patched.setattr(database, "create", cut_short)
        with pytest.raises(Killed):
            Store(tmp_path)
    with closing(Store(tmp_path)) as opened:
        opened.plan([row()])


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(BadRequest, match="cannot be written to"):
        Store(tmp_path / "results")


def test_nothing_is_left_of_the_probe(store: Store) -> None:
    assert {path.name.partition("-")[0] for path in store.folder.iterdir()} == {FILE_NAME}


# --- a folder that cannot be written to -------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def without_rights(work: Callable[[], object]) -> Any:
    """What ``work`` returns in a process that may only read; root, who may do anything, becomes another user."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(pwd.getpwnam("nobody").pw_gid)
                os.setuid(pwd.getpwnam("nobody").pw_uid)
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(send, json.dumps(answer).encode())
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return json.loads(text)


def read_only(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def look(folder: Path) -> Callable[[], object]:
    def work() -> object:
        with closing(Store(folder, create=False)) as store:
            return [overview(store, 10).counts, top1s(store)]

    return work


def test_a_store_in_a_read_only_folder_can_be_read(shared: Path) -> None:
    with closing(Store(shared)) as store, Worker(store) as worker:
        store.plan([row()])
        worker.claim(["r1"], ORIGIN)
        add(worker, "r1", record(1, 0.25))
    read_only(shared)
    assert without_rights(look(shared)) == [{"planned": 1}, [0.25]]
    assert without_rights(lambda: Store(shared)) == (
        f"BadRequest: results folder {shared} cannot be written to (Permission denied): name another --results"
    )


def test_a_read_only_store_that_somebody_else_trains_into(shared: Path) -> None:
    with closing(Store(shared)) as store, Worker(store) as worker:
        store.plan([row()])
        worker.claim(["r1"], ORIGIN)
        add(worker, "r1", record(1, 0.25))
        assert (shared / f"{FILE_NAME}-wal").stat().st_size
        assert without_rights(look(shared)) == [{"running": 1}, [0.25]]


def test_a_read_only_store_of_a_killed_process(shared: Path, tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store, Worker(store) as worker:
        store.plan([row()])
        worker.claim(["r1"], ORIGIN)
        add(worker, "r1", record(1, 0.25))
        for file in tmp_path.iterdir():
            shutil.copy(file, shared)
    read_only(shared)
    assert without_rights(look(shared)) == [{"running": 1}, [0.25]]
