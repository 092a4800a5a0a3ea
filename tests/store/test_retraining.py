"""Two results of one run: by older and by newer code."""

from contextlib import closing
from pathlib import Path

import pytest

from kdtable.checkpoints import student
from kdtable.errors import Trouble
from kdtable.store import Store, Worker
from kdtable.store.files import CHECKPOINT, EPOCHS, STUDENT, bring_back, older_folder
from kdtable.store.maintenance.checking import check
from kdtable.store.maintenance.copying import copy
from kdtable.store.maintenance.pruning import prune, spare
from kdtable.store.overview import overview
from kdtable.store.records import TeacherRecord
from kdtable.store.retraining import Renewal, older_results, remove_older, renew
from kdtable.store.schema import origin_row
from tests.store.samples import (
    ORIGIN,
    add,
    columns,
    own,
    record,
    save_student,
    state_of,
    stranger,
    top1_of,
    top1s,
    train,
)

FIRST = own("first")
RUN = str(FIRST["run_id"])
NEW = ORIGIN | {"source": "s2"}


def train_new(store: Store, top1: float, origin: dict[str, object] = NEW, kept: str = "last") -> None:
    """Train the run in one epoch, as `run` does after `renew`."""
    history = [record(1, top1)]
    with Worker(store) as worker:
        assert worker.claim([RUN], origin) == [RUN]
        with worker.holding(RUN) as held:
            held.restart()
        if kept != "none":
            save_student(store.run_folder(RUN) / STUDENT, state_of(RUN, history))
        with worker.holding(RUN) as held:
            held.finish(history, kept)


def anew(store: Store, code: str = "s2", **more: object) -> None:
    current = columns(store, RUN).result
    words = {"of": current and current.code, "teacher_sha256": "1" * 64} | more
    renew(store, {RUN: Renewal(**words)}, code)  # type: ignore[arg-type]


def begin(store: Store, kept: str = "last") -> None:
    """A finished result by the code s1."""
    train(store, RUN, 0.1, kept=kept, identity=FIRST["identity"])


def first_of(path: Path) -> float:
    """The number that tells the weights of two trainings apart."""
    return float(student.load(path)[0]["weight"][0])


def test_the_older_result_stays_beside_the_new_one(store: Store) -> None:
    begin(store, kept="all")
    store.record_teacher(TeacherRecord(RUN, "digits", "resnet8", {"top1": 0.5}, 100))
    anew(store)
    waiting = columns(store, RUN)
    assert (waiting.status, waiting.result, waiting.kept, waiting.teacher_sha256) == ("planned", None, None, "1" * 64)
    assert store.teacher_accuracies() == [], "as a teacher it is to be measured again"
    assert not (store.run_folder(RUN) / EPOCHS).exists(), "nothing that the new training could go on from"
    assert list(check(store)) == []
    train_new(store, 0.2)
    assert [result.code for result in store.results(RUN)] == ["s1", "s2"]
    assert (top1_of(columns(store, RUN), "last"), top1s(store, RUN)) == (0.2, [0.2])
    (older,) = older_results(store)
    assert (older.result and older.result.code, top1_of(older, "last"), older.done) == ("s1", 0.1, True)
    there = older_folder(store.run_folder(RUN), "s1")
    assert first_of(there / STUDENT) == pytest.approx(0.1)
    assert [path.name for path in (there / EPOCHS).iterdir()] == ["main-0001.pt"]
    assert first_of(store.run_folder(RUN) / STUDENT) == pytest.approx(0.2)
    assert overview(store, 5).older == 1
    assert list(check(store)) == []


def test_an_older_result_comes_back(store: Store) -> None:
    begin(store)
    anew(store)
    train_new(store, 0.2)
    anew(store, "s1", back="s1")
    back = columns(store, RUN)
    assert (back.status, back.kept, top1_of(back, "last"), top1s(store, RUN)) == ("done", "last", 0.1, [0.1])
    assert first_of(store.run_folder(RUN) / STUDENT) == pytest.approx(0.1)
    assert first_of(older_folder(store.run_folder(RUN), "s2") / STUDENT) == pytest.approx(0.2)
    assert list(check(store)) == []


@pytest.mark.parametrize(("code", "retaught", "kept"), [("s1", False, 1), ("s2", True, 1), ("s2", False, 0)])
def test_a_hash_that_the_new_result_takes_is_freed(store: Store, code: str, retaught: bool, kept: int) -> None:
    """Two results of the same code differ where the teacher does."""
    begin(store)
    anew(store, code, retaught=retaught)
    train_new(store, 0.2, ORIGIN | {"source": code})
    older, newer = store.results(RUN) if store.results(RUN)[1].code == code else reversed(store.results(RUN))
    assert (newer.code, older.provenance.sources) == (code, ("s1",))
    assert (older.code not in ("s1", "s2")) == bool(kept)
    assert first_of(older_folder(store.run_folder(RUN), older.code) / STUDENT) == pytest.approx(0.1)
    assert list(check(store)) == []


def test_an_unfinished_result_is_dropped(store: Store) -> None:
    train(store, RUN, 0.1, 0.2, 0.3, done=False, identity=FIRST["identity"])
    assert (store.run_folder(RUN) / CHECKPOINT).exists()
    anew(store)
    assert (columns(store, RUN).status, store.results(RUN)) == ("planned", [])
    assert not (store.run_folder(RUN) / CHECKPOINT).exists()
    assert list(check(store)) == []


def test_what_another_process_trains_is_left_alone(store: Store) -> None:
    train(store, RUN, 0.1, 0.2, done=False, identity=FIRST["identity"])
    stranger(store, RUN)
    anew(store)
    assert (columns(store, RUN).status, len(top1s(store, RUN))) == ("running", 2)
    assert (store.run_folder(RUN) / CHECKPOINT).exists()


def test_what_another_process_has_trained_meanwhile_is_left_alone(store: Store) -> None:
    begin(store)
    anew(store)
    train_new(store, 0.2)
    anew(store, of="s1")
    assert (columns(store, RUN).done, top1s(store, RUN)) == (True, [0.2])


def test_killed_before_the_database_knows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are moved first: the result stays the current one, and gets them back."""
    begin(store)
    monkeypatch.setattr("kdtable.store.retraining.clear", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        anew(store)
    folder = store.run_folder(RUN)
    assert (columns(store, RUN).done, (folder / STUDENT).exists()) == (True, False)
    (finding,) = check(store)
    assert "puts them back" in finding.advice
    bring_back(folder, "s1")
    assert list(check(store)) == []
    monkeypatch.undo()
    anew(store)
    train_new(store, 0.2)
    assert first_of(older_folder(folder, "s1") / STUDENT) == pytest.approx(0.1)


def test_an_unfinished_result_never_takes_the_place_of_an_older_one(store: Store, worker: Worker) -> None:
    """The code goes back to that of the older result while the new one is unfinished."""
    begin(store)
    anew(store)
    worker.claim([RUN], NEW)
    add(worker, RUN, record(1, 0.2))
    worker.release([RUN])
    worker.claim([RUN], ORIGIN)
    assert [(r.code, r.provenance.sources) for r in store.results(RUN)] == [("s1", ("s1",)), ("s2", ("s2", "s1"))]
    with worker.holding(RUN) as held:
        held.finish([record(1, 0.2)], "none")
    assert (top1s(store, RUN), [e.metrics["top1"] for e in store.history(RUN, "s1")]) == ([0.2], [0.1])


def test_older_results_are_removed_alone_or_with_their_run(store: Store) -> None:
    begin(store)
    anew(store)
    train_new(store, 0.2)
    assert (remove_older(store, ["another"]), remove_older(store, [RUN]), remove_older(store, [RUN])) == (0, 1, 0)
    assert [result.code for result in store.results(RUN)] == ["s2"]
    assert not older_folder(store.run_folder(RUN), "s1").exists()
    assert top1s(store, RUN) == [0.2]
    assert list(check(store)) == []


def test_pruning_knows_older_weights(store: Store) -> None:
    begin(store, kept="all")
    anew(store)
    train_new(store, 0.2)
    last = spare(store, "last")
    assert [file.kind for file in last] == ["checkpoints of older results"]
    none = spare(store, "none")
    assert [file.kind for file in none] == ["checkpoints of older results", "students", "students of older results"]
    prune(store, none, "none")
    assert list(check(store)) == []
    assert not list(store.run_folder(RUN).rglob("*.safetensors"))


def test_a_file_that_cannot_be_moved_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(store)
    monkeypatch.setattr(Path, "replace", _refused)
    with pytest.raises(Trouble, match="cannot be moved"):
        anew(store)
    assert columns(store, RUN).done
    assert list(check(store)) == []


def _refused(self: Path, _: Path) -> None:
    raise PermissionError(13, "Permission denied", str(self))


# --- from store to store ----------------------------------------------------------------------------------------------


def test_a_copy_has_both_results_and_the_code(store: Store, store_url: str | None, tmp_path: Path) -> None:
    source = store_url or str(store.folder)
    files = {"kdtable/methods/kd.py": "0"}
    made = str(origin_row(files)["id"])
    store.record_code(files)
    begin(store)
    anew(store)
    train_new(store, 0.2, ORIGIN | {"source": made})
    copy(source, str(tmp_path / "there"))
    with closing(Store(tmp_path / "there")) as there:
        assert there.results(RUN) == store.results(RUN)
        assert top1s(there, RUN) == [0.2]
        if store_url is None:
            assert first_of(older_folder(there.run_folder(RUN), "s1") / STUDENT) == pytest.approx(0.1)
            assert list(check(there)) == []
        assert there.code_files([made, "s1"]) == {made: files}


def test_a_retrained_run_joins_its_older_self_and_not_the_other_way(
    store: Store, store_url: str | None, tmp_path: Path
) -> None:
    source, target = store_url or str(store.folder), str(tmp_path / "there")
    begin(store)
    copy(source, target)
    anew(store)
    assert copy(target, source).copied == 0, "it waits to be trained again"
    train_new(store, 0.2)
    assert copy(target, source).copied == 0
    assert top1s(store, RUN) == [0.2]
    assert copy(source, target).copied == 1
    with closing(Store(Path(target))) as there:
        assert ([r.code for r in there.results(RUN)], top1s(there, RUN)) == (["s1", "s2"], [0.2])
        if store_url is None:
            assert first_of(there.run_folder(RUN) / STUDENT) == pytest.approx(0.2)
            assert first_of(older_folder(there.run_folder(RUN), "s1") / STUDENT) == pytest.approx(0.1)
            assert list(check(there)) == []
    assert copy(source, target).copied == 0
