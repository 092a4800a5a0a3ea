"""What a check of a store finds, and what it advises."""

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch

from kdtable.checkpoints import checkpoint, student
from kdtable.errors import BadRequest
from kdtable.recipes.record import EpochRecord
from kdtable.store import FILE_NAME, Store
from kdtable.store.files import CHECKPOINT, EPOCHS, PREVIOUS, STUDENT
from kdtable.store.maintenance.checking import check
from kdtable.store.records import packed
from kdtable.store.schema import histories, runs
from tests.store.samples import ACCURACY, own, rewrite, row, save_student, stranger, train

IDS = {name: str(own(name)["run_id"]) for name in ("r1", "r2", "r3", "r4", "r5", "r6")}


def findings(store: Store) -> list[str]:
    """What is found, with runs by the names that they have here."""
    found = [f"{finding.what}: {finding.advice}" for finding in check(store)]
    for name, run_id in IDS.items():
        found = [text.replace(run_id, name) for text in found]
    return found


def train_own(store: Store, name: str, *top1s: float, **options: Any) -> None:
    train(store, IDS[name], *top1s, identity=own(name)["identity"], **options)


def place(store: Store, name: str) -> Path:
    """A file of a run, which is named as ``r1/student.safetensors``."""
    run, _, file = name.partition("/")
    return store.run_folder(IDS.get(run, run)) / file


@pytest.fixture
def whole(store: Store) -> Store:
    """A store with runs in every state, in which all is well."""
    train_own(store, "r1", 0.1, 0.7, 0.3)
    train_own(store, "r2", 0.1, 0.2, kept="all")
    train_own(store, "r3", 0.1, kept="none")
    train_own(store, "r4", 0.1, done=False)
    store.plan([row(**own("r5")), row(**own("r6"), status="n/a", reason="too small")])
    return store


def test_all_is_well(whole: Store) -> None:
    assert findings(whole) == []


def test_an_empty_store(store: Store) -> None:
    assert findings(store) == []


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Gives a checkpoint a state that its run never had."""

    def spoil(path: Path) -> None:
        state = checkpoint.load(path)
        change(state)
        checkpoint.save(path, state)

    return spoil


def only_student(state: dict[str, Any]) -> None:
    for key in state.keys() - {"run", "student", "history"}:
        del state[key]


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_run(path: Path) -> None:
    state: dict[str, Any] = {"run": "r9", "student": {"weight": torch.zeros(2)}, "history": []}
    (save_student if path.name == STUDENT else checkpoint.save)(path, state)


def shorter(path: Path) -> None:
    """Take the last epoch from what a student says of itself."""
    tensors, origin = student.load(path)
    student.save(path, tensors, replace(origin, history=origin.history[:-1]))


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")


FILES: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "no student": (f"r1/{STUDENT}", Path.unlink, "is missing", "kdtable store copy"),
    "a truncated student": (f"r1/{STUDENT}", half, f"r1/{STUDENT}", "delete it, train it into another folder"),
    "another run's student": (f"r1/{STUDENT}", of_another_run, "belongs to another run", "delete it, train"),
    "a damaged checkpoint": (
        f"r4/{CHECKPOINT}",
        half,
        f"r4/{CHECKPOINT}",
        "the next 'kdtable run' of it sets it aside",
    ),
    "another run's checkpoint": (f"r4/{CHECKPOINT}", of_another_run, "belongs to another run", "sets it aside"),
    "no checkpoint": (f"r4/{CHECKPOINT}", Path.unlink, "checkpoint of run r4 is gone", "begins it again"),
    "a student for a checkpoint": (
        f"r4/{CHECKPOINT}",
        changed(only_student),
        "does not fit its run: KeyError: 'position'",
        "sets it aside",
    ),
    "NaN": (
        f"r4/{CHECKPOINT}",
        changed(lambda state: state["history"][0].update(train_loss=math.nan)),
        "has what is no finite number",
        "sets it aside",
    ),
    "an epoch that never comes": (
        f"r4/{CHECKPOINT}",
        changed(lambda state: state.update(epoch=99)),
        "is at another epoch",
        "sets it aside",
    ),
    "another recipe": (
        f"r4/{CHECKPOINT}",
        changed(lambda state: state["optimizer"]["param_groups"][0].update(weight_decay=5.0)),
        "has another weight_decay than its recipe",
        "sets it aside",
    ),
    "a momentum of another shape": (
        f"r4/{CHECKPOINT}",
        changed(lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(7))),
        "is of another shape",
        "sets it aside",
    ),
    "no momentum": (
        f"r4/{CHECKPOINT}",
        changed(lambda state: state["optimizer"]["state"].clear()),
        "has lost its momentum",
        "sets it aside",
    ),
    "no scale": (
        f"r4/{CHECKPOINT}",
        changed(lambda state: state.update(scaler={"scale": -1.0})),
        "has what is no number",
        "sets it aside",
    ),
    "a checkpoint that cannot be opened": (f"r4/{CHECKPOINT}", folder, "cannot be read", "'kdtable run' of it fails"),
    "an early end": (
        f"r1/{STUDENT}",
        shorter,
        "different numbers for run",
        "do not trust it",
    ),
    "a damaged epoch": (f"r2/{EPOCHS}/main-0001.pt", half, "main-0001.pt", "delete it"),
    "a checkpoint left": (f"r1/{CHECKPOINT}", write, "continues nothing", "kdtable store prune"),
    "an old checkpoint left": (f"r1/{PREVIOUS}", write, "continues nothing", "kdtable store prune"),
    "half a student": (f"r1/.{STUDENT}.{'0' * 32}", write, "half-written", "kdtable store prune"),
    "half a checkpoint": (f"r4/{CHECKPOINT}.{'0' * 32}", write, "half-written", "the next 'kdtable run'"),
    "a file set aside": (f"r1/{CHECKPOINT}.corrupt", write, "was set aside", "kdtable store prune"),
    "a file set aside earlier": (f"r4/{CHECKPOINT}.corrupt-2", write, "was set aside", "delete it when"),
    "a folder of nobody": (f"r99/{STUDENT}", write, "r99 belongs to no run", "move it away"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, whole: Store) -> None:
    name, spoil, *told = FILES[case]
    spoil(place(whole, name))
    (found,) = findings(whole)
    assert all(part in found for part in told), found


def test_a_run_whose_checkpoint_is_gone_has_those_of_its_epochs(whole: Store) -> None:
    (place(whole, f"r4/{EPOCHS}")).mkdir()
    place(whole, f"r4/{CHECKPOINT}").rename(place(whole, f"r4/{EPOCHS}/main-0001.pt"))
    (found,) = findings(whole)
    assert "checkpoint of run r4 is gone" in found
    assert f"goes on from the newest in {whole.run_folder('r4').parent}" in found


def test_every_flipped_bit_of_a_student_is_found(whole: Store) -> None:
    path = place(whole, f"r1/{STUDENT}")
    good = path.read_bytes()
    for byte in range(0, len(good), max(1, len(good) // 60)):
        content = bytearray(good)
        content[byte] ^= 4
        path.write_bytes(content)
        state = None
        if not findings(whole):
            state = student.load(path)
        path.write_bytes(good)
        assert state is None or str(state) == str(student.load(path)), f"byte {byte}"


def rerecord(change: Callable[[list[EpochRecord]], object]) -> Callable[[Store], None]:
    """Gives run r1 other epochs, of which its row knows nothing."""

    def spoil(store: Store) -> None:
        history = list(store.history(IDS["r1"]))
        change(history)
        with store.database.write() as db:
            run = sa.select(runs.c.key).where(runs.c.id == IDS["r1"]).scalar_subquery()
            db.execute(histories.update().where(histories.c.run == run).values(content=packed(history)))

    return spoil


def of(statement: str) -> Callable[[Store], None]:
    return lambda store: rewrite(store, statement)


def with_changed(**changes: Any) -> Callable[[list[EpochRecord]], object]:
    """Changes the last epoch."""
    return lambda history: history.append(replace(history.pop(), **changes))


ROWS: dict[str, tuple[Callable[[Store], None], list[str]]] = {
    "a changed number": (
        rerecord(with_changed(metrics={"top1": 0.5, "top5": 0.9, "train-top1": 0.4})),
        ["row of run r1", "student.safetensors and the"],
    ),
    "a changed loss": (rerecord(with_changed(train_loss=9.0)), ["student.safetensors and the database"]),
    "a changed row": (
        of("UPDATE results SET chosen = replace(chosen, '0.7', '0.9')"),
        ["row of run r1 and its epochs"],
    ),
    "a changed seed": (
        of(f"UPDATE runs SET seed = 9 WHERE id = '{IDS['r5']}'"),
        ["run r5 is not the one that its row"],
    ),
    "a changed identity": (
        of("UPDATE protocols SET identity = replace(identity, 'r5', 'r7')"),
        ["run r5 is not the one that its row"],
    ),
    "a lost epoch": (
        rerecord(lambda history: history.pop(1)),
        [
            "lacks epochs amid others",
            "is done with 2 of 3 epochs",
            "row of run r1",
            "student.safetensors and the database",
        ],
    ),
    "a lost end": (
        rerecord(lambda history: history.pop()),
        ["is done with 2 of 3 epochs", "row of run r1", "student.safetensors and the database"],
    ),
    "a lost history": (
        of(f"DELETE FROM histories WHERE run = (SELECT key FROM runs WHERE id = '{IDS['r1']}')"),
        ["is done with 0 of 3 epochs", "row of run r1", "student.safetensors and the database"],
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_contradict_each_other(case: str, whole: Store) -> None:
    spoil, told = ROWS[case]
    spoil(whole)
    found = findings(whole)
    assert len(found) == len(told), found
    assert all(part in text for part, text in zip(told, found, strict=True)), found


CHANGED = {
    "a teacher": ("UPDATE teachers SET metrics = 'x'", "a teacher's accuracy cannot be read"),
    "lost origins": ("DELETE FROM origins", "where a result came from cannot be read"),
    "a history": (f"UPDATE histories SET content = {'{}'}", "the history of run r1 cannot be read"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_cannot_be_read(case: str, whole: Store) -> None:
    whole.record_teacher(ACCURACY)
    statement, told = CHANGED[case]
    rewrite(whole, statement.format("decode('00', 'hex')" if whole.database.is_server else "x'00'"))
    found = findings(whole)
    assert told in found[0]
    assert all("restore the database from a copy" in text for text in found)


def test_runs_in_training_are_left_alone(whole: Store) -> None:
    stranger(whole, IDS["r4"])
    place(whole, f"r4/{CHECKPOINT}").unlink()
    write(place(whole, f"r4/{CHECKPOINT}.{'0' * 32}"))
    assert findings(whole) == []


def test_rows_of_no_run(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        train_own(store, "r1", 0.1, 0.2)
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as db, db:  # which knows nothing of foreign keys
            db.execute("DELETE FROM runs")
        found = findings(store)
    assert found == [
        f"a row of the table {table} belongs to none of those that it names: "
        "restore the database from a copy, or train into another store"
        for table in ("results",)
    ]


def test_a_damaged_database(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.plan([row(f"r{number}", seed=number) for number in range(500)])
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    found = []
    for page in range(1, len(content) // 4096):
        spoiled = bytearray(content)
        spoiled[page * 4096 + 3] ^= 0xFF  # how many cells the page has
        path.write_bytes(spoiled)
        try:
            with closing(Store(tmp_path, create=False)) as store:
                found += findings(store)[:1]
        except BadRequest as error:
            found.append(str(error))
    assert len(found) == len(content) // 4096 - 1
    assert all("the database is damaged" in text or f"{FILE_NAME} is damaged" in text for text in found), found
