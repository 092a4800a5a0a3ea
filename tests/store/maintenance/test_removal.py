"""Runs are taken out with all that is theirs, and nothing else."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kdtable.errors import BadRequest, Trouble
from kdtable.planning.run import digest
from kdtable.store import Store, Worker
from kdtable.store.maintenance.checking import check
from kdtable.store.maintenance.removal import matching, removable, remove
from kdtable.store.records import TeacherRecord
from kdtable.store.schema import tables
from tests.store.samples import ORIGIN, row, stranger, train


def identity(name: str, **refs: str) -> dict[str, Any]:
    """An identity of a run's own, whose teacher or start may be another run."""
    recipe = {"momentum": 0.9, "weight_decay": 5e-4}
    return {"run": name, "student": {"network": "resnet8"}, "recipe": recipe} | {k: {"run": v} for k, v in refs.items()}


def done(store: Store, name: str, **refs: str) -> str:
    own = identity(name, **refs)
    run_id = digest(own | {"seed": 1})
    train(store, run_id, 0.1, kept="all", identity=own)
    return run_id


def content(store: Store) -> Mapping[str, int]:
    """Rows of each table."""
    with store.database.read() as db:
        return {
            t.name: db.execute(sa.select(sa.func.count()).select_from(t)).scalar_one() for t in tables.sorted_tables
        }


def ids(store: Store) -> set[str]:
    return {run.id for run in store.runs()}


def test_all_of_a_run_goes_and_nothing_of_others(store: Store) -> None:
    first, second = done(store, "first"), done(store, "second")
    store.record_teacher(TeacherRecord(first, "digits", "resnet14", {"top1": 0.5}, 100))
    before = content(store)
    assert [run.id for run in removable(store, {first}).runs] == [first]
    assert content(store) == before, "looking removes nothing"
    remove(store, [first])
    assert ids(store) == {second}
    assert [path.name for path in (store.folder / "runs").iterdir()] == [second]
    assert list(check(store)) == []
    after = content(store)
    gone = {name for name in before if after[name] == before[name] - 1}
    assert gone == {"protocols", "runs", "results", "histories", "teachers"}
    assert (store.run_folder(second) / "student.safetensors").exists()


def test_a_removed_run_can_be_planned_and_trained_again(store: Store) -> None:
    first = done(store, "first")
    remove(store, [first])
    assert done(store, "first") == first
    assert list(check(store)) == []


def test_a_run_in_training_stays(store: Store, worker: Worker) -> None:
    store.plan([row("mine"), row("theirs"), row("planned")])
    worker.claim(["mine"], ORIGIN)
    stranger(store, "theirs")
    found = removable(store, {"mine", "theirs", "planned"})
    assert [run.id for run in found.runs] == ["planned"]
    assert found.kept == ("2 runs (mine, theirs) are being trained, and stay",)
    assert removable(store, {"mine"}).kept == ("run mine is being trained, and stays",)
    with pytest.raises(Trouble, match="other processes changed these runs just now"):
        remove(store, ["mine", "planned"])
    assert ids(store) == {"mine", "theirs", "planned"}


def test_a_run_whose_process_died_can_go(store: Store) -> None:
    from tests.store.samples import ME

    store.plan([row("died")])
    stranger(store, "died", host=ME.host, machine=ME.machine, pid=2**22 + 1, started="0")
    assert [run.id for run in removable(store, {"died"}).runs] == ["died"]
    remove(store, ["died"])
    assert ids(store) == set()


def test_what_others_start_from_stays_unless_they_go_too(store: Store) -> None:
    teacher = done(store, "teacher")
    heads = done(store, "heads", start=teacher)
    student = done(store, "student", teacher=heads)
    found = removable(store, {teacher, heads})
    assert found.runs == ()
    assert found.kept == (
        f"run {heads} stays, since run {student} starts from it",
        f"run {teacher} stays, since run {heads} starts from it",
    )
    assert [run.id for run in removable(store, {student, heads}).runs] == [heads, student]
    assert {run.id for run in removable(store, {teacher, heads, student}).runs} == {teacher, heads, student}
    with pytest.raises(Trouble):
        remove(store, [teacher])
    remove(store, [teacher, heads, student])
    assert ids(store) == set()
    assert list(check(store)) == []


def test_folders_that_are_left_are_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between the transaction and the removal of the files."""
    first, second = done(store, "first"), done(store, "second")

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(store, [first])
    assert ids(store) == {second}
    (finding,) = check(store)
    assert finding.what == f"{store.run_folder(first)} belongs to no run of this store"


def test_a_failing_transaction_removes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = done(store, "first")
    before = content(store)
    monkeypatch.setattr("kdtable.store.maintenance.removal.protocols", None)
    with pytest.raises(AttributeError):
        remove(store, [first])
    assert content(store) == before
    assert list(check(store)) == []


def test_a_folder_that_cannot_be_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = done(store, "first")

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "student.safetensors"))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(
        Trouble, match=r"student.safetensors cannot be removed \(Permission denied\): remove .* by hand"
    ):
        remove(store, [first])


def test_conditions() -> None:
    found = [row("1", student="resnet8", seed=1), row("2", student="resnet20", row="at", seed=2, teacher=None)]

    def ids_where(text: str) -> list[str]:
        return [run.id for run in matching(found, text)]

    assert ids_where("row=kd,row=at") == ["1", "2"]
    assert ids_where("row=at, seed=2") == ["2"]
    assert ids_where("row=kd,seed=2") == []
    assert ids_where("student=res8") == ["1"], "any spelling of a network"
    assert ids_where("teacher=none") == ["2"]
    for text, sentence in {
        "row": "--where takes KEY=VALUE,..., not 'row'",
        "row=": "--where takes KEY=VALUE,..., not 'row='",
        "rows=kd": "unknown key of --where 'rows'; did you mean row",
        "row=kt": "unknown row 'kt': use one of at, kd",
    }.items():
        with pytest.raises(BadRequest, match=sentence.replace("(", r"\(")):
            matching(found, text)
