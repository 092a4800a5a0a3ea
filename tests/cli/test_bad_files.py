"""Files that a request names and that cannot be used: one clear sentence, exit code 2, nothing written."""

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdtable.store import SCHEMA_VERSION, Store
from kdtable.store.schema import runs
from tests.cli.command import SMALL, TEACHER, Call, Done, Shell, assert_refused, listing, write_images, write_teacher
from tests.cli.conftest import GRID

RUN = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,kd", "--epochs", "1", *SMALL, *TEACHER)

#: What replaces an array of a good set, and what the sentence must say.
ARRAYS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "images of floats": ({"train_images": np.full((48, 3, 32, 32), 2.5, np.float32)}, ("train_images", "float32")),
    "oblong images": ({"train_images": np.zeros((48, 3, 32, 16), np.uint8)}, ("train_images", "(48, 3, 32, 16)")),
    "two sizes": ({"test_images": np.zeros((24, 3, 16, 16), np.uint8)}, ("test_images", "(24, 3, 16, 16)")),
    "no test images": ({"test_images": np.zeros((0, 3, 32, 32), np.uint8)}, ("test_images", "not empty")),
    "labels of floats": ({"train_labels": np.zeros(48)}, ("train_labels", "float64", "integer")),
    "too few labels": ({"train_labels": np.zeros(47, np.uint8)}, ("train_labels", "(47,)", "(48,)")),
    "two labels each": ({"test_labels": np.zeros((24, 2), np.uint8)}, ("test_labels", "(24, 2)")),
    "a negative label": ({"test_labels": np.arange(24) - 1}, ("test_labels", "-1")),
    "a label too large": ({"num_classes": np.array(3)}, ("train_labels", "0 to 3", "0 to 2")),
    "half a class": ({"num_classes": np.array(3.5)}, ("num_classes", "3.5")),
    "an array is missing": ({"test_labels": None}, ("test_labels", "expected")),
    "two means": ({"mean": np.array([0.5, 0.5])}, ("mean", "three numbers")),
    "no spread": ({"std": np.zeros(3)}, ("std", "above zero")),
    "objects": ({"train_labels": np.array([object()] * 48)}, ("train_labels",)),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_a_wrong_array(case: str, call: Call, tiny: Path) -> None:
    changes, parts = ARRAYS[case]
    write_images(tiny / "tiny.npz", changes)
    before = listing(tiny)
    assert_refused(call(*RUN), "tiny.npz", *parts)
    assert listing(tiny) == before


def test_a_damaged_npz(call: Call, tiny: Path) -> None:
    whole = (tiny / "tiny.npz").read_bytes()
    for content in (b"", b"no zip file", whole[: len(whole) // 2]):
        (tiny / "tiny.npz").write_bytes(content)
        before = listing(tiny)
        assert_refused(call(*RUN), "tiny.npz")
        assert listing(tiny) == before


def test_a_checkpoint_of_another_number_of_classes(call: Call, tiny: Path) -> None:
    write_teacher(tiny / "resnet14.pth", classes=7)
    before = listing(tiny)
    assert_refused(call(*RUN), "resnet14.pth has 7 classes, the data set has 4")
    assert listing(tiny) == before


def test_a_checkpoint_of_another_architecture(call: Call, tiny: Path) -> None:
    write_teacher(tiny / "resnet14.pth", network="vgg8")
    before = listing(tiny)
    assert_refused(call(*RUN), "resnet14.pth is not a resnet14")
    assert listing(tiny) == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_checkpoint(content: bytes, call: Call, tiny: Path) -> None:
    (tiny / "resnet14.pth").write_bytes(content)
    before = listing(tiny)
    assert_refused(call(*RUN), "resnet14.pth")
    assert listing(tiny) == before


@dataclass(frozen=True)
class Trap:
    """Unpickled by a careless reader, it makes a folder."""

    marker: str

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize(
    "command", [RUN, ("check-teachers", "--data", "npz:tiny.npz", *TEACHER)], ids=["run", "check-teachers"]
)
def test_code_in_a_checkpoint_is_never_run(command: tuple[str, ...], tiny: Path) -> None:
    marker = tiny / "sprung"
    torch.save({"model": Trap(str(marker))}, tiny / "resnet14.pth")
    before = listing(tiny)
    assert_refused(Shell(tiny).run(*command), "resnet14.pth is refused", "code")
    assert not marker.exists()
    assert listing(tiny) == before


STORE_COMMANDS = [RUN, (*RUN, "--dry-run"), ("status",), ("report",), ("report", "--table", "crd-1")]


@pytest.mark.parametrize("command", STORE_COMMANDS, ids=["run", "dry-run", "status", "report", "report --table"])
def test_another_versions_store(command: tuple[str, ...], call: Call, tiny: Path) -> None:
    Store(tiny / "results").close()
    database = sqlite3.connect(tiny / "results" / "kdtable.sqlite")
    with database:
        database.execute("update meta set schema_version = ?", (SCHEMA_VERSION + 1,))
    database.close()
    assert_refused(call(*command), "another version of kdtable", "name another --results, or move it away")
    database = sqlite3.connect(tiny / "results" / "kdtable.sqlite")
    assert database.execute("select schema_version from meta").fetchall() == [(SCHEMA_VERSION + 1,)]
    assert database.execute("select count(*) from runs").fetchall() == [(0,)]
    database.close()
    assert not (tiny / "results" / "runs").exists()


@pytest.mark.parametrize("command", STORE_COMMANDS, ids=["run", "dry-run", "status", "report", "report --table"])
def test_a_file_that_is_no_store(command: tuple[str, ...], call: Call, tiny: Path) -> None:
    (tiny / "results").mkdir()
    (tiny / "results" / "kdtable.sqlite").write_bytes(b"The quick brown fox jumps over the lazy dog. " * 50)
    before = listing(tiny)
    assert_refused(call(*command), "kdtable.sqlite cannot be read as a results store", "--results")
    assert listing(tiny) == before


def test_a_store_that_was_damaged(after_grid: Path, call: Call) -> None:
    """What cannot be read of it is told in one sentence."""
    path = after_grid / "results" / "kdtable.sqlite"
    good = path.read_bytes()
    commands = (("status",), ("report", "--format", "json"), ("store", "prune"))
    refused = 0
    for seed in range(12):
        content, draw = bytearray(good), random.Random(seed)
        if seed % 3 == 0:
            del content[draw.randrange(len(content)) :]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        for done in (call(*command) for command in commands):
            if done.code:
                assert_refused(done, "kdtable.sqlite")
                refused += 1
    assert refused


def test_what_a_damaged_store_says(after_grid: Path, call: Call) -> None:
    path = after_grid / "results" / "kdtable.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("update results set chosen = '{'")
    before = path.read_bytes()
    told = (
        "the store results/kdtable.sqlite is damaged (a run cannot be read",
        "'kdtable store check' tells more",
        "a copy",
    )
    for command in (("report",), ("status",), ("store", "copy", "results", "copied"), (*GRID, "--seeds", "2")):
        assert_refused(call(*command), *told)
    check = call("store", "check")
    assert check.code == 1
    assert "a run cannot be read" in check.out
    assert "restore the database from a copy" in check.out
    assert path.read_bytes() == before


def test_an_empty_store(call: Call, tmp_path: Path) -> None:
    Store(tmp_path / "results").close()
    assert_refused(call("report"), "the store in results holds no run yet", "kdtable run")
    assert call("status").out.startswith("0 done")


def test_a_database_of_something_else(call: Call, tiny: Path) -> None:
    (tiny / "results").mkdir()
    database = sqlite3.connect(tiny / "results" / "kdtable.sqlite")
    with database:
        database.execute("create table letters (body text)")
    database.close()
    for command in STORE_COMMANDS:
        assert_refused(call(*command), "kdtable.sqlite", "--results")
    database = sqlite3.connect(tiny / "results" / "kdtable.sqlite")
    assert database.execute("select name from sqlite_master").fetchall() == [("letters",)]
    database.close()


#: Moves the cursor, colours, turns the direction of reading, breaks the line, and is markup.
NASTY = "\x1b[2J\x9b31m\u202e[red]\n|a"


def _clean(done: Done) -> str:
    text = done.out + done.err
    assert not any(c in text for c in "\x1b\x9b\u202e"), repr(text)
    return text


def test_names_of_classes_are_spelled_out(call: Call, tiny: Path) -> None:
    for part, names in (("train", ("a", NASTY)), ("test", ("a",))):
        for name in names:
            (tiny / "set" / part / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tiny / "set" / part / name / "0.png")
    done = call(*RUN, "--data", f"folder:{tiny / 'set'}")
    assert_refused(done, r"only one of them has \x1b[2J\x9b31m\u202e[red]\n|a")
    _clean(done)


def test_keys_of_a_checkpoint_are_spelled_out(call: Call, tiny: Path) -> None:
    content = torch.load(tiny / "resnet14.pth", weights_only=True)
    content["model"][NASTY] = torch.zeros(2)
    torch.save(content, tiny / "resnet14.pth")
    done = call(*RUN)
    assert_refused(done, r"resnet14.pth is not a resnet14: it has \x1b[2J\x9b31m\u202e[red]\n|a")
    _clean(done)


def test_names_of_files_are_spelled_out(call: Call, tiny: Path) -> None:
    (tiny / "tiny.npz").rename(tiny / f"{NASTY}.npz")
    done = call(*RUN, "--data", f"npz:{NASTY}2.npz")
    assert_refused(done, r"\u202e[red]\n|a2.npz: no such npz file")
    _clean(done)
    planned = call(*RUN, "--data", f"npz:{NASTY}.npz", "--dry-run")
    assert planned.code == 0
    _clean(planned)


def test_reasons_in_a_store_are_spelled_out(call: Call, tiny: Path) -> None:
    assert call(*RUN, "--methods", "kd", "--set", "weight.kd=1e38").code == 1
    with closing(Store(tiny / "results")) as store, store.database.write() as db:
        db.execute(runs.update().values(reason=NASTY, teacher=NASTY))
    text = _clean(call("status"))
    assert r"\x1b[2J\x9b31m\u202e[red]\n|a" in text
    for form in (("terminal",), ("markdown",), ("csv", "--wide"), ("json",)):
        done = call("report", "--format", *form)
        assert done.code == 0
        assert "x1b" in _clean(done) or "u001b" in done.out
    assert "x1b" in _clean(call("report", "--by-seed"))
