"""Checkpoints and students at URLs: written under new names, theirs by the transaction that stores the epoch."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from kdtable.errors import BadRequest, Trouble
from kdtable.execution import shared_recorder
from kdtable.execution.assignment import Assignment
from kdtable.execution.part import FOLDER, MARK, Report, packed_part, train_part
from kdtable.execution.run_grid import Outcome, store_row
from kdtable.export.files import named_student
from kdtable.files import remote
from kdtable.planning.cohorts import PlannedRun
from kdtable.store import Store, shared
from kdtable.store.claims import Held
from kdtable.store.maintenance.checking import check
from kdtable.store.maintenance.copying import copy
from kdtable.store.maintenance.pruning import prune, spare
from kdtable.store.maintenance.removal import remove
from tests import postgres
from tests.cli.command import assert_same_numbers, epochs_in, runs_in
from tests.execution.grids import Heard, plan, train, write_grid
from tests.store.samples import rewrite

URL = "memory://place"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a grid, trained with all files in its results folder."""
    folder = tmp_path_factory.mktemp("alone")
    write_grid(folder)
    assert train(plan([1], folder), folder / "results") == Outcome(2, 0, 0)
    return folder


@pytest.fixture
def grid(alone: Path) -> Iterator[tuple[PlannedRun, ...]]:
    """The same grid; what is at the URL is forgotten after the test."""
    MemoryFileSystem.store.clear()
    yield plan([1], alone)
    MemoryFileSystem.store.clear()


def names() -> list[str]:
    """What is at the URL: kind, attempt and epochs of each file."""
    return sorted(path.rsplit("/", 1)[1].rsplit("-", 1)[0] for path in fsspec.filesystem("memory").find("place"))


def rows(results: Path) -> list[Any]:
    with closing(Store(results, create=False)) as store, store.database.read() as db:
        return db.exec_driver_sql("SELECT url, result_code FROM shared_files").all()


def assert_whole(results: Path, alone: Path) -> None:
    """Equal to the bit, a student for each run at the URL, and nothing else anywhere."""
    assert names() == [name for name in names() if name.startswith("student-")]
    assert len(names()) == len(rows(results)) == 2
    assert [path for path in results.glob("runs/*/*") if path.is_file()] == []
    for run in runs_in(results):
        named_student(run, results)  # fetched into the results folder
    assert_same_numbers(results, alone / "results")
    assert {run["status"] for run in runs_in(results).values()} == {"done"}


def test_a_grid_whose_files_are_elsewhere(grid: Sequence[PlannedRun], alone: Path, tmp_path: Path) -> None:
    during: list[list[str]] = []

    class Looking(Heard):
        def epoch(self, *_: Any) -> None:
            during.append(names())

    assert train(grid, tmp_path / "results", Looking(), checkpoints=URL) == Outcome(2, 0, 0)
    assert during[0] == ["checkpoint-1-1"]
    assert_whole(tmp_path / "results", alone)
    assert train(grid, tmp_path / "results", checkpoints=URL) == Outcome(2, 0, 0)
    assert names() == ["student-1-2"] * 2, "nothing is trained again"
    copied = copy(str(tmp_path / "results"), str(tmp_path / "copy"))
    assert (copied.copied, copied.left_out) == (2, ())
    assert_same_numbers(tmp_path / "copy", alone / "results")
    with closing(Store(tmp_path / "results", create=False)) as store:
        assert list(check(store)) == []
        fsspec.filesystem("memory").rm("place", recursive=True)
        assert [finding.what.endswith("is gone") for finding in check(store)] == [True, True]


class Killed(BaseException):
    """Ends a process at once, as far as the store can tell."""


@pytest.mark.parametrize("at", [2, 4, 6], ids=["the first epoch of the second run", "its second one", "a student"])
def test_killed_between_writing_a_file_and_making_it_the_run_s(
    at: int, grid: Sequence[PlannedRun], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, commit = 0, Held.commit

    def dying(held: Held, url: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        commit(held, url)

    results = tmp_path / "results"
    with monkeypatch.context() as patched:
        patched.setattr(Held, "commit", dying)
        with pytest.raises(Killed):
            train(grid, results, checkpoints=URL)
    lost = [url for url, code in rows(results) if code is None]
    assert len(lost) == 1
    assert fsspec.filesystem("memory").exists(lost[0]), "the file is there, and belongs to nothing"
    assert train(grid, results, checkpoints=URL) == Outcome(2, 0, 0)
    assert_whole(results, alone)
    assert {run["attempt"] for run in runs_in(results).values()} >= {2}, "it went on"


def test_a_process_that_was_believed_dead_makes_nothing_its_own(
    grid: Sequence[PlannedRun], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, heard, upload, late = tmp_path / "results", Heard(), remote.upload, []

    def overtaken(source: Path, url: str) -> None:
        """While the file is on its way, the run gets another attempt, whose sweep finds no file to remove."""
        upload(source, url)
        if not late and "checkpoint-1-2" in url:
            late.append(url)
            with closing(Store(results)) as store:
                rewrite(store, "UPDATE runs SET attempt = attempt + 1")
                rewrite(store, "DELETE FROM shared_files WHERE result_code IS NULL")

    monkeypatch.setattr(shared_recorder.remote, "upload", overtaken)
    assert train(grid, results, heard, checkpoints=URL) == Outcome(2, 0, 0)
    assert any("was taken over by another process" in reason for run, reason in heard.of("failed")) or any(
        "was taken over by another process" in note for (note,) in heard.of("note")
    )
    assert not fsspec.filesystem("memory").exists(late[0])
    assert_whole(results, alone)


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_bad_checkpoint_leaves_the_one_before(
    how: str, grid: Sequence[PlannedRun], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, heard = tmp_path / "results", Heard()
    _stop_before_the_end(grid, results, monkeypatch)
    memory = fsspec.filesystem("memory")
    for path in [path for path in memory.find("place") if "checkpoint-1-2" in path]:
        memory.pipe_file(path, b"junk") if how == "damaged" else memory.rm_file(path)
    assert train(grid, results, heard, checkpoints=URL) == Outcome(2, 0, 0)
    assert any("is gone or damaged: run " in note for (note,) in heard.of("note"))
    assert [record.epoch for _, record in heard.of("epoch")] == [2, 2], "neither began again"
    assert_whole(results, alone)


def _stop_before_the_end(grid: Sequence[PlannedRun], results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until both runs have their last checkpoint, and neither is done."""

    def dying(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Held, "finish", dying)
        with pytest.raises(Killed):
            train(grid[:1], results, checkpoints=URL)
        with pytest.raises(Killed):
            train(grid[1:], results, checkpoints=URL)


def test_a_place_that_is_away_fails_the_run_and_loses_nothing(
    grid: Sequence[PlannedRun], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    _stop_before_the_end(grid, results, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "_open", lambda *_, **__: _refuse())
        with pytest.raises(BadRequest, match=r"--checkpoints memory://place cannot be written to \(no route\): see to"):
            train(grid, results, checkpoints=URL)
        patched.setattr(shared_recorder.remote, "check_writable", lambda url: None)  # it goes away just after
        heard = Heard()
        assert train(grid, results, heard, checkpoints=URL) == Outcome(0, 2, 0)
        assert all("memory://place/" in reason and "(no route)" in reason for _, reason in heard.of("failed"))
    assert names() == [f"checkpoint-1-{epoch}" for epoch in (1, 1, 2, 2)]
    assert train(grid, results, checkpoints=URL) == Outcome(2, 0, 0)
    assert_whole(results, alone)


def _refuse() -> Any:
    raise ConnectionError("no route")


def test_there_and_back(
    grid: Sequence[PlannedRun], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun in the results folder goes on at the URL; what was begun there asks for it."""
    results, heard = tmp_path / "results", Heard()
    with monkeypatch.context() as patched:
        patched.setattr(Held, "finish", lambda *_: _kill())
        with pytest.raises(Killed):
            train(grid[:1], results)
    with monkeypatch.context() as patched:
        patched.setattr(Held, "finish", lambda *_: _kill())
        with pytest.raises(Killed):
            train(grid[1:], results, checkpoints=URL)
    with pytest.raises(BadRequest, match=r"^1 unfinished run of these have checkpoints in memory://place: add --check"):
        train(grid, results)
    assert train(grid, results, heard, checkpoints=URL) == Outcome(2, 0, 0)
    assert heard.of("epoch") == [], "both were behind their last epoch"
    assert_whole(results, alone)


def _kill() -> None:
    raise Killed


def test_every_epoch_is_kept_on_request_and_removed_with_its_run(
    grid: Sequence[PlannedRun], alone: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    assert train(grid, results, checkpoints=URL, keep="all") == Outcome(2, 0, 0)
    assert names() == ["checkpoint-1-1"] * 2 + ["checkpoint-1-2"] * 2 + ["student-1-2"] * 2
    with closing(Store(results)) as store:
        remove(store, [grid[0].run.id])
        assert len(names()) == 3
        assert not [path for path in fsspec.filesystem("memory").find("place") if grid[0].run.id in path]


def test_what_is_not_to_be_kept_is_pruned(grid: Sequence[PlannedRun], alone: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    train(grid, results, checkpoints=URL, keep="all")
    with closing(Store(results)) as store:
        half = shared.SharedFile(f"{URL}/{grid[0].run.id}/half", grid[0].run.id, shared.STUDENT, 1, 2, "0" * 64, 3)
        with store.database.write() as db:
            shared.announce(db, half)
        fsspec.filesystem("memory").pipe_file(half.url, b"abc")
        assert [(file.kind, file.size) for file in spare(store)] == [("half-written files", 3)]
        assert Counter(file.kind for file in spare(store, "last")) == {
            "half-written files": 1,
            "checkpoints of single epochs": 4,
        }
        prune(store, spare(store, "last"), "last")
        assert names() == ["student-1-2"] * 2
        assert spare(store, "last") == [] == list(check(store))
        prune(store, spare(store, "none"), "none")
        assert names() == rows(results) == [] == list(check(store))


def test_no_weights_on_request(grid: Sequence[PlannedRun], alone: Path, tmp_path: Path) -> None:
    assert train(grid, tmp_path / "results", checkpoints=URL, keep="none") == Outcome(2, 0, 0)
    assert names() == rows(tmp_path / "results") == []
    assert epochs_in(tmp_path / "results") == epochs_in(alone / "results")


def test_a_student_that_was_changed_is_fetched_again_or_refused(
    grid: Sequence[PlannedRun], alone: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    train(grid, results, checkpoints=URL)
    run = grid[0].run.id
    path = named_student(run, results)
    whole = path.read_bytes()
    path.write_bytes(b"of an older result")
    assert named_student(run, results).read_bytes() == whole
    path.unlink()
    memory = fsspec.filesystem("memory")
    (there,) = (name for name in memory.find("place") if run in name)
    memory.pipe_file(there, b"junk")
    with pytest.raises(Trouble, match=rf"the student of run {run} cannot be fetched: memory:/.* is damaged; train it"):
        named_student(run, results)
    memory.rm_file(there)
    with pytest.raises(Trouble, match=rf"the student of run {run} cannot be fetched: memory:/.* \(it is not there\)"):
        named_student(run, results)
    assert not path.exists()


def test_a_machine_that_does_not_see_the_results_folder(
    grid: Sequence[PlannedRun], alone: Path, tmp_path: Path
) -> None:
    """With a server for the results and a URL for the files, it needs no folder."""
    results, url = tmp_path / "results", f"file://{tmp_path / 'place'}"
    with postgres.serve() as server:
        database = server.new_database()
        with closing(Store(results, database)) as store:
            shared.prepare(store)
            store.plan([store_row(planned) for planned in grid])
        part = Assignment(tuple(grid), results, tmp_path, database, "last", patience=0.0, checkpoints=url)
        stamp, packed = packed_part(part, "cpu", 1)
        shutil.rmtree(results)
        assert train_part(stamp, packed) == Report()
        assert not results.exists(), "nothing of that machine's own stays"
        refused, _ = packed_part(Assignment(tuple(grid), results, tmp_path, database, "last"), "cpu", 1)
        (results / FOLDER / MARK).unlink()
        report = train_part(refused, packed)
        assert report.refused is not None
        assert report.refused.endswith("share (--results), or where they all can write checkpoints (--checkpoints)")
        for run in runs_in(results, database):
            named_student(run, results, database)
        assert_same_numbers(results, alone / "results", database)
