"""Runs and epochs as `run` writes them, with made-up contents."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
import torch

from kdtable.checkpoints import checkpoint, student
from kdtable.planning.run import digest
from kdtable.store import Store, Worker
from kdtable.store.files import CHECKPOINT, EPOCHS, STUDENT
from kdtable.store.liveness import own_process
from kdtable.store.schema import runs, workers
from kdtable.store.seals import change_runs, seal_all, sealed

ME = own_process(os.getpid())
ORIGIN = {"source": "s1", "numerics": {"threads": 1}}
MEANING = json.dumps({"student": {"network": "resnet8"}, "seeds": "any"}, sort_keys=True)
OTHER_MEANING = json.dumps({"student": {"network": "resnet20"}}, sort_keys=True)


def row(run_id: str = "r1", **changes: Any) -> dict[str, Any]:
    values = {
        "id": run_id,
        "row": "kd",
        "student": "resnet8",
        "teacher": "resnet14",
        "teacher_sha256": "0" * 64,
        "data": "digits",
        "seed": 1,
        "precision": "fp32",
        "meaning": MEANING,
        "epochs": 3,
        "status": "planned",
        "reason": None,
    }
    values |= changes
    return values | {"protocol_id": digest(json.loads(str(values["meaning"])))}


def own(name: str) -> dict[str, str]:
    """A meaning of a run's own, and the id that it has by that."""
    meaning = {"run": name, "student": {"network": "resnet8"}, "recipe": {"momentum": 0.9, "weight_decay": 5e-4}}
    return {"meaning": json.dumps(meaning, sort_keys=True), "id": digest(meaning | {"seed": 1})}


def record(epoch: int, top1: float = 0.5, **changes: Any) -> dict[str, Any]:
    values = {
        "stage": "main",
        "epoch": epoch,
        "lr": 0.05,
        "train_loss": 1.0,
        "train_top1": 0.4,
        "test_top1": top1,
        "test_top5": 0.9,
        "seconds": 2.0,
        "members": 3,
        "terms": {"ce": 1.0},
    }
    return values | changes


def columns(store: Store, run_id: str = "r1") -> dict[str, Any]:
    (run,) = store.all_runs([run_id])
    return run


def add(worker: Worker, run_id: str, *history: dict[str, Any]) -> None:
    """Record epochs of a run that the worker holds."""
    with worker.holding(run_id) as held:
        held.record(history)


def finish(worker: Worker, run_id: str, *history: dict[str, Any]) -> None:
    with worker.holding(run_id) as held:
        held.finish(history, "last")


def fail(worker: Worker, run_id: str, reason: str) -> None:
    with worker.holding(run_id) as held:
        held.fail(reason)


def stranger(store: Store, *run_ids: str, **changes: Any) -> str:
    """Another machine's worker, which trains ``run_ids``; its id."""
    values = {
        "id": uuid4().hex,
        "host": "far",
        "machine": "elsewhere",
        "pid": 7,
        "started": "1",
        "beat": 0,
        "seen": "-",
    }
    values |= changes
    with store.database.write() as db:
        db.execute(workers.insert(), [sealed(workers, values)])
        change_runs(
            db, sa.select(runs).where(runs.c.id.in_(run_ids)), {"status": "running", "claimed_by": values["id"]}
        )
    return str(values["id"])


def beat(store: Store, worker: str) -> None:
    with store.database.write() as db:
        (row,) = db.execute(sa.select(workers).where(workers.c.id == worker)).mappings()
        db.execute(
            workers.update().where(workers.c.id == worker).values(sealed(workers, {**row, "beat": row["beat"] + 1}))
        )


def rewrite(store: Store, statement: str, *, seal: bool = True) -> None:
    """Change the store behind its back, on request with checksums as if it had done so itself."""
    with store.database.write() as db:
        db.execute(sa.text(statement))
        if seal:
            seal_all(db)


def workers_of(store: Store) -> list[str]:
    with store.database.read() as db:
        return list(db.execute(sa.select(workers.c.id)).scalars())


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state_of(run_id: str, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of a run that has all its epochs behind it."""
    weight = torch.tensor([epoch["test_top1"] for epoch in history])
    group = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "params": [0]}
    return {
        "run": run_id,
        "position": 1,
        "epoch": len(history),
        "student": {"weight": weight},
        "method": {},
        "optimizer": {"state": {0: {"momentum_buffer": weight.clone()}}, "param_groups": [group]},
        "scaler": {},
        "history": history,
    }


def save_student(path: Path, state: dict[str, Any]) -> None:
    """What a run leaves when it is done."""
    three = (0.5, 0.5, 0.5)
    origin = student.Origin("resnet8", 10, 8, three, three, "digits", state["run"], {}, state["history"])
    student.save(path, state["student"], origin)


def train(
    store: Store, run_id: str, *top1s: float, done: bool = True, kept: str = "last", meaning: str = MEANING
) -> None:
    """Plan a run of as many epochs as there are accuracies, and train it, with its files."""
    store.plan([row(run_id, epochs=len(top1s), meaning=meaning)])
    history = [record(epoch, top1) for epoch, top1 in enumerate(top1s, start=1)]
    state = state_of(run_id, history)
    folder = store.run_folder(run_id)
    with Worker(store) as worker:
        worker.claim([run_id], ORIGIN)
        if done:
            if kept != "none":
                save_student(folder / STUDENT, state)
            if kept == "all":
                checkpoint.save(folder / EPOCHS / "main-0001.pt", state)
            with worker.holding(run_id) as held:
                held.finish(history, kept)
        else:
            checkpoint.save(folder / CHECKPOINT, state)
            add(worker, run_id, *history)
