"""Results from one store into another, of either kind."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kdtable.errors import BadRequest, Trouble
from kdtable.store import Store, Worker
from kdtable.store.files import CHECKPOINT, EPOCHS, PREVIOUS, STUDENT
from kdtable.store.maintenance import copying
from kdtable.store.maintenance.checking import check
from kdtable.store.maintenance.copying import Copied, copy
from tests.postgres import Server
from tests.store.samples import (
    ACCURACY,
    ME,
    ORIGIN,
    OTHER_IDENTITY,
    columns,
    finish,
    origins,
    own,
    record,
    rewrite,
    row,
    stranger,
    train,
)


@dataclass(frozen=True)
class Pair:
    """Two stores, and how they are named."""

    source: Store
    target: Store
    source_name: str
    target_name: str

    def copy(self) -> Copied:
        return copy(self.source_name, self.target_name)

    @property
    def folders(self) -> bool:
        return not (self.source.database.is_server or self.target.database.is_server)


@pytest.fixture(params=["folder to folder", "folder to url", "url to folder", "url to url"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    def opened(kind: str, name: str) -> tuple[Store, str]:
        if kind == "folder":
            return Store(tmp_path / name), str(tmp_path / name)
        server: Server = request.getfixturevalue("postgres_server")
        url = server.new_database()
        return Store(tmp_path / name, url), url

    kinds = request.param.split(" to ")
    (source, source_name), (target, target_name) = opened(kinds[0], "from"), opened(kinds[1], "to")
    with closing(source), closing(target):
        yield Pair(source, target, source_name, target_name)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Pair]:
    with closing(Store(tmp_path / "from")) as source, closing(Store(tmp_path / "to")) as target:
        yield Pair(source, target, str(tmp_path / "from"), str(tmp_path / "to"))


def content(store: Store) -> list[Any]:
    """What a store says of its runs, whatever their keys."""
    return [(replace(run, key=0), store.results(run.id), store.history(run.id)) for run in store.runs()]


def test_everything_is_copied_once(pair: Pair) -> None:
    train(pair.source, "r1", 0.1, 0.7, 0.3)
    train(pair.source, "r2", 0.1, 0.2, done=False)
    pair.source.plan([row("r3"), row("r4", OTHER_IDENTITY, status="n/a", reason="too small")])
    pair.source.record_teacher(ACCURACY)
    assert pair.copy() == Copied(4, 0, pair.folders)
    assert content(pair.target) == content(pair.source)
    assert pair.target.teacher_accuracies() == pair.source.teacher_accuracies()
    assert [origins(run) for run in pair.target.runs()] == [[ORIGIN], [ORIGIN], [], []]
    before = content(pair.target)
    assert pair.copy() == Copied(0, 4, pair.folders)
    assert content(pair.target) == before


def test_runs_join_those_that_are_there(pair: Pair) -> None:
    train(pair.target, "r0", 0.9)
    train(pair.source, "r1", 0.5)
    pair.copy()
    assert [run.id for run in pair.target.runs()] == ["r0", "r1"]
    assert len(pair.target.history("r0")) == len(pair.target.history("r1")) == 1


def test_a_finished_run_replaces_an_unfinished_one_and_not_the_other_way(pair: Pair) -> None:
    for store, done in ((pair.source, "r1"), (pair.target, "r2")):
        for name in ("r1", "r2"):
            train(store, name, *((0.1, 0.2) if name == done else (0.1,)), done=name == done)
    assert pair.copy().copied == 1
    for name in ("r1", "r2"):
        assert (columns(pair.target, name).status, len(pair.target.history(name))) == ("done", 2)
    if pair.folders:
        assert {path.name for path in pair.target.run_folder("r1").iterdir()} == {STUDENT}


def test_a_run_in_training_there_can_be_continued_here(pair: Pair) -> None:
    train(pair.source, "r1", 0.1, done=False)
    stranger(pair.source, "r1")
    pair.copy()
    copied = columns(pair.target)
    assert (copied.status, copied.claimed_by, copied.last_epoch) == ("planned", None, 1)
    assert columns(pair.source).status == "running"


def test_runs_that_differ_are_named_and_nothing_is_copied(pair: Pair) -> None:
    for number in range(7):
        train(pair.source, f"r{number}", 0.1, 0.2)
        train(pair.target, f"r{number}", 0.1, 0.2 if number == 3 else 0.3)
    train(pair.source, "r8", 0.1)
    before = content(pair.target)
    with pytest.raises(BadRequest) as refused:
        pair.copy()
    told = "nothing was copied: run r0 has other numbers in the other store, run r1"
    assert told in str(refused.value)
    assert "r3" not in str(refused.value)
    assert "and 1 more" in str(refused.value)
    assert content(pair.target) == before


def test_time_and_cohort_make_no_difference(pair: Pair) -> None:
    for store, seconds in ((pair.source, 2.0), (pair.target, 99.0)):
        store.plan([row("r1", epochs=1)])
        with Worker(store) as worker:
            worker.claim(["r1"], ORIGIN)
            finish(worker, "r1", record(1, seconds=seconds, waited=seconds / 2, cohort_size=int(seconds)))
    assert pair.copy().copied == 0


def test_a_run_of_the_same_id_and_another_identity(pair: Pair) -> None:
    pair.source.plan([row("r1")])
    pair.target.plan([row("r1", OTHER_IDENTITY)])
    with pytest.raises(BadRequest, match="run r1 has another identity"):
        pair.copy()


def test_what_is_being_trained_in_the_target_is_left_to_that(pair: Pair) -> None:
    train(pair.source, "r1", 0.1)
    pair.target.plan([row("r1", epochs=1)])
    stranger(pair.target, "r1")
    with pytest.raises(BadRequest, match="run r1 is being trained in the other store"):
        pair.copy()
    rewrite(pair.target, f"UPDATE workers SET machine = '{ME.machine}', pid = {ME.pid}")
    assert pair.copy().copied == 1, "a dead process trains nothing"
    assert columns(pair.target).status == "done"


def test_a_copy_that_was_cut_short_goes_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        train(pair.source, f"r{number}", 0.1)

    class Killed(Exception):
        pass

    def cut_short(start: Any, end: Any, ids: Any) -> list[str]:
        if len(pair.target.runs()) == 4:
            raise Killed
        return copy_runs(start, end, ids)

    copy_runs = copying._copy_runs
    with monkeypatch.context() as patched:
        patched.setattr(copying, "AT_ONCE", 2)
        patched.setattr(copying, "_copy_runs", cut_short)
        with pytest.raises(Killed):
            pair.copy()
    assert pair.copy() == Copied(2, 4, pair.folders)
    assert content(pair.target) == content(pair.source)


def test_files_come_along(folders: Pair) -> None:
    train(folders.source, "r1", 0.1, 0.2, kept="all")
    train(folders.source, "r2", 0.1, done=False)
    (folders.source.run_folder("r2") / f".{CHECKPOINT}.0123").write_bytes(b"half")
    folders.copy()
    for name, files in (("r1", {"student.safetensors", "epochs", "epochs/main-0001.pt"}), ("r2", {"checkpoint.pt"})):
        source, target = folders.source.run_folder(name), folders.target.run_folder(name)
        assert {str(path.relative_to(target)) for path in target.rglob("*")} == files
        for path in target.rglob("*.pt"):
            assert path.read_bytes() == (source / path.relative_to(target)).read_bytes()


def test_a_lost_student_is_restored(folders: Pair) -> None:
    for store in (folders.source, folders.target):
        train(store, "r1", 0.1)
        train(store, "r2", 0.1, kept="none")
    train_there = folders.target.run_folder("r1") / STUDENT
    train_there.unlink()
    assert folders.copy().copied == 0
    assert train_there.read_bytes() == (folders.source.run_folder("r1") / STUDENT).read_bytes()
    assert not folders.target.run_folder("r2").exists()


def test_a_store_is_not_copied_onto_itself(folders: Pair, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="both ends"):
        copy(folders.source_name, str(tmp_path / "to" / ".." / "from"))
    with pytest.raises(BadRequest, match=r"postgresql://me:\*\*\*@host/db is both ends"):
        copy("postgresql://me:secret@host/db", "postgresql://me:secret@host/db")


def test_nothing_is_copied_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no results store"):
        copy(str(tmp_path / "nowhere"), str(tmp_path / "to"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_copied(folders: Pair) -> None:
    train(folders.source, "r1", 0.1)
    (folders.target.folder / "runs").write_text("in the way")
    with pytest.raises(BadRequest, match=r"student.safetensors cannot be copied to .*copy again to go on"):
        folders.copy()
    assert folders.target.runs() == []


# --- damaged files ----------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change one bit of a checkpoint."""
    content = bytearray(path.read_bytes())
    content[content.index(b"train_loss")] ^= 1
    path.write_bytes(content)


def test_damaged_files_are_named_and_left_out(folders: Pair) -> None:
    train(folders.source, "r1", 0.1, kept="all")
    train(folders.source, "r2", 0.1, done=False)
    done, begun = (folders.source.run_folder(name) for name in ("r1", "r2"))
    (begun / PREVIOUS).write_bytes((begun / CHECKPOINT).read_bytes())
    damaged = [done / STUDENT, done / EPOCHS / "main-0001.pt", begun / CHECKPOINT]
    for path in damaged:
        flip(path)
    copied = folders.copy()
    assert copied.copied == 2
    for path, text in zip(damaged, copied.left_out, strict=True):
        assert text.startswith(f"{path} is ")
        assert "damaged" in text
    there = {str(path.relative_to(folders.target.folder / "runs")) for path in folders.target.folder.rglob("*.pt")}
    assert there == {f"r2/{PREVIOUS}"}
    assert content(folders.target) == content(folders.source)


def test_a_file_of_another_run_is_left_out(folders: Pair) -> None:
    for name in ("r1", "r2"):
        train(folders.source, name, 0.1)
    mine, other = (folders.source.run_folder(name) / STUDENT for name in ("r1", "r2"))
    mine.write_bytes(other.read_bytes())
    assert folders.copy().left_out == (f"{mine} belongs to another run",)
    assert not (folders.target.run_folder("r1") / STUDENT).exists()


def test_a_lost_student_is_not_restored_from_a_damaged_one(folders: Pair) -> None:
    for store in (folders.source, folders.target):
        train(store, "r1", 0.1)
    here, there = (store.run_folder("r1") / STUDENT for store in (folders.source, folders.target))
    whole = here.read_bytes()
    there.unlink()
    flip(here)
    for _ in range(2):
        assert len(folders.copy().left_out) == 1, "said as often as it is asked for"
    assert not there.exists()
    here.write_bytes(whole)
    assert folders.copy().left_out == ()
    assert there.read_bytes() == whole


def test_a_file_that_cannot_be_opened_is_no_damaged_one(folders: Pair) -> None:
    train(folders.source, "r1", 0.1)
    student = folders.source.run_folder("r1") / STUDENT
    student.unlink()
    student.mkdir()
    with pytest.raises(Trouble, match=r"student.safetensors cannot be read .*copy again to go on"):
        folders.copy()
    assert folders.target.runs() == []


@pytest.mark.parametrize("name", ["a?b", "p%41", "a #&b", "it's Größe"])
def test_folders_with_odd_names(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "from" / name, tmp_path / "to" / name
    run = own("r1")
    with closing(Store(source)) as store:
        train(store, run["run_id"], 0.1, identity=run["identity"])
    assert copy(str(source), str(target)) == Copied(1, 0, files=True)
    with closing(Store(target, create=False)) as copied:
        assert copied.statuses([run["run_id"]]) == {run["run_id"]: "done"}
        assert list(check(copied)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from", "to"]
