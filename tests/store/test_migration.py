"""Stores of older schemas are brought up to date, once, by whoever may change them."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kdtable.errors import BadRequest
from kdtable.planning.run import digest
from kdtable.store import FILE_NAME, SCHEMA_VERSION, ClaimLost, Store, Worker, database
from kdtable.store.overview import overview
from tests.store.samples import ORIGIN, add, columns, record, row, stranger, train

SCHEMA_1 = """
CREATE TABLE meta (schema_version INTEGER NOT NULL);
CREATE TABLE runs (
  "key" INTEGER NOT NULL, id VARCHAR(16) NOT NULL, protocol_id VARCHAR(16) NOT NULL, status VARCHAR(8) NOT NULL,
  reason TEXT, "row" VARCHAR NOT NULL, student VARCHAR NOT NULL, teacher VARCHAR, teacher_sha256 VARCHAR(64),
  data VARCHAR NOT NULL, seed INTEGER NOT NULL, precision VARCHAR NOT NULL, meaning TEXT NOT NULL, provenance TEXT,
  epochs INTEGER NOT NULL, last_epoch INTEGER, last_top1 FLOAT, last_top5 FLOAT, best_epoch INTEGER, best_top1 FLOAT,
  best_top5 FLOAT, wall_seconds FLOAT NOT NULL, terms TEXT, created VARCHAR NOT NULL, started VARCHAR,
  finished VARCHAR, PRIMARY KEY ("key"), UNIQUE (id));
CREATE INDEX ix_runs_status ON runs (status);
CREATE INDEX ix_runs_protocol_id ON runs (protocol_id);
CREATE TABLE teachers (
  sha256 VARCHAR(64) NOT NULL, data VARCHAR NOT NULL, network VARCHAR NOT NULL, top1 FLOAT NOT NULL,
  top5 FLOAT NOT NULL, images INTEGER NOT NULL, claimed_top1 FLOAT, PRIMARY KEY (sha256, data));
CREATE TABLE epochs (
  run INTEGER NOT NULL, stage VARCHAR NOT NULL, epoch INTEGER NOT NULL, lr FLOAT NOT NULL, train_loss FLOAT NOT NULL,
  train_top1 FLOAT NOT NULL, test_top1 FLOAT NOT NULL, test_top5 FLOAT NOT NULL, seconds FLOAT NOT NULL,
  members INTEGER NOT NULL, PRIMARY KEY (run, stage, epoch), FOREIGN KEY(run) REFERENCES runs ("key")) WITHOUT ROWID;
INSERT INTO meta VALUES (1);
INSERT INTO teachers VALUES ('ab', 'digits', 'resnet14', 0.9, 1.0, 449, NULL);
"""
LOWEST = ("lowest_epoch", "lowest_top1", "lowest_top5")
MOVED = ORIGIN | {"source": "s2"}


def old_run(db: sqlite3.Connection, run_id: str, status: str, seed: int, meaning: str, origins: list[Any]) -> None:
    values = {
        "id": run_id,
        "protocol_id": digest({"student": meaning}),
        "status": status,
        "row": "kd",
        "student": "resnet8",
        "data": "digits",
        "seed": seed,
        "precision": "fp32",
        "meaning": json.dumps({"student": meaning, "seed": seed}, sort_keys=True),
        "provenance": json.dumps(origins) if origins else None,
        "epochs": 2,
        "wall_seconds": 1.5,
        "created": "2026-01-01T00:00:00+00:00",
    }
    if status == "done":
        values |= {"last_epoch": 2, "last_top1": 0.5, "best_epoch": 1, "best_top1": 0.75}
    names, marks = ", ".join(f'"{name}"' for name in values), ", ".join("?" * len(values))
    key = db.execute(f"INSERT INTO runs ({names}) VALUES ({marks})", list(values.values())).lastrowid
    if status == "done":
        for epoch, top1 in ((1, 0.75), (2, 0.5)):
            db.execute("INSERT INTO epochs VALUES (?, 'main', ?, 0.1, 1, 0.2, ?, 0.9, 3, 4)", (key, epoch, top1))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with a store of schema 1."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as db, db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(SCHEMA_1)
        old_run(db, "r1", "done", 1, "a", [ORIGIN])
        old_run(db, "r2", "done", 2, "a", [ORIGIN, MOVED])
        old_run(db, "r3", "running", 1, "b", [MOVED])
        old_run(db, "r4", "planned", 2, "b", [])
        old_run(db, "r5", "failed", 3, "b", [MOVED])
    return tmp_path


def assert_migrated(store: Store) -> None:
    runs = {run["id"]: run for run in store.all_runs()}
    statuses = {run_id: run["status"] for run_id, run in runs.items()}
    assert statuses == {"r1": "done", "r2": "done", "r3": "planned", "r4": "planned", "r5": "failed"}
    assert [json.loads(runs[name]["meaning"])["student"] for name in ("r1", "r2", "r3")] == ["a", "a", "b"]
    origins = {run_id: json.loads(run["provenance"] or "[]") for run_id, run in runs.items()}
    assert origins == {"r1": [ORIGIN], "r2": [ORIGIN, MOVED], "r3": [MOVED], "r4": [], "r5": [MOVED]}
    assert [runs[name]["kept"] for name in ("r1", "r3")] == ["last", None]
    assert (runs["r1"]["last_top1"], runs["r1"]["best_top1"], runs["r1"]["created"][:4]) == (0.5, 0.75, "2026")
    assert [epoch["test_top1"] for epoch in store.epochs_of("r2")] == [0.75, 0.5]
    assert [teacher["network"] for teacher in store.teacher_accuracies()] == ["resnet14"]


def test_a_store_of_schema_1_is_migrated(old: Path) -> None:
    (old / "training.lock").touch()
    for _ in range(2):
        with closing(Store(old)) as store:
            assert_migrated(store)
    with closing(sqlite3.connect(old / FILE_NAME)) as db:
        assert db.execute("select schema_version from meta").fetchall() == [(SCHEMA_VERSION,)]
    assert not (old / "training.lock").exists()


def test_a_migrated_store_is_like_a_new_one(old: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with closing(Store(tmp_path_factory.mktemp("new"))) as new, closing(Store(old)) as migrated:
        for name in ("runs", "epochs", "protocols", "origins", "workers", "teachers"):
            described = []
            for store in (new, migrated):
                with store.database.read() as db:
                    found = db.exec_driver_sql(f"PRAGMA table_info({name})").all()
                described.append({(column[1], column[2], column[3], column[5]) for column in found})
            assert described[0] == described[1]


def test_a_migrated_store_can_be_trained_into(old: Path) -> None:
    with closing(Store(old)) as store, Worker(store) as worker:
        assert worker.claim(["r3", "r4"], ORIGIN) == ["r3", "r4"]
        add(worker, "r3", record(1))
        assert json.loads(columns(store, "r3")["provenance"]) == [MOVED, ORIGIN]


def make_older(store: Store) -> None:
    """Bring a store back to schema 2, which knew no checksums."""
    with store.database.write() as db:
        for table in ("runs", "workers", "teachers"):
            db.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN seal"))
        new = {"epochs": ("waited", "test_loss"), "runs": ("table_seal", "epochs_seal", *LOWEST)}
        for table, columns_ in new.items():
            for column in columns_:
                db.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        for key, meaning in db.execute(sa.text("SELECT id, meaning FROM protocols")).all():
            values = {"key": key, "meaning": json.dumps(json.loads(meaning), sort_keys=True)}
            db.execute(sa.text("UPDATE protocols SET meaning = :meaning WHERE id = :key"), values)
        db.execute(sa.text("UPDATE meta SET schema_version = 2"))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_store_of_schema_2_is_migrated(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres_server").new_database() if kind == "postgresql" else None
    with closing(Store(tmp_path, url)) as store:
        train(store, "r1", 0.25, 0.5)
        train(store, "r2", 0.25, done=False)
        store.plan([row("r3")])
        stranger(store, "r3")
        store.record_teacher({"sha256": "a", "data": "d", "network": "n", "top1": 0.9, "top5": 1.0, "images": 9})
        before = [store.all_runs(), store.epochs_of("r1"), store.teacher_accuracies()]
        make_older(store)
    before[0][2] |= {"status": "planned", "claimed_by": None}
    if url:
        with pytest.raises(BadRequest, match="has schema 2, of an older kdtable: the next 'kdtable run'"):
            Store(tmp_path, url, create=False)
    for create in (False, True, False) if url is None else (True, False):
        with closing(Store(tmp_path, url, create=create)) as store:
            assert [store.all_runs(), store.epochs_of("r1"), store.teacher_accuracies()] == before
    with closing(Store(tmp_path, url)) as store, Worker(store) as worker:
        assert worker.claim(["r2", "r3"], ORIGIN) == ["r2", "r3"]
        add(worker, "r2", record(1, 0.25), record(2))


def test_an_older_kdtable_that_trains_loses_its_runs(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.plan([row()])
        with Worker(store) as worker:
            worker.claim(["r1"], ORIGIN)
            make_older(store)
            with closing(Store(tmp_path)) as newer:
                assert columns(newer)["claimed_by"] is None
            with pytest.raises(ClaimLost):
                add(worker, "r1", record(1))


def test_a_store_of_schema_1_that_is_only_read_stays_as_it_is(old: Path) -> None:
    before = (old / FILE_NAME).read_bytes()
    with closing(Store(old, create=False)) as store:
        assert_migrated(store)
        assert overview(store, 10).counts == {"done": 2, "planned": 2, "failed": 1}
    assert (old / FILE_NAME).read_bytes() == before


def test_a_store_of_schema_1_is_not_migrated_while_its_kdtable_trains(old: Path) -> None:
    import fcntl

    with (old / "training.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadRequest, match="an older kdtable is training"):
            Store(old)
    with closing(Store(old)) as store:
        assert_migrated(store)


def test_a_migration_that_was_cut_short_begins_anew(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    migrate = database.migrate

    def cut_short(db: Any, found: int) -> None:
        migrate(db, found)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(database, "migrate", cut_short)
        with pytest.raises(Killed):
            Store(old)
    with closing(Store(old)) as store:
        assert_migrated(store)
