"""Runs and epochs as `run` writes them, with made-up contents."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
import torch

from kdtable.checkpoints import checkpoint, student
from kdtable.planning.run import digest
from kdtable.recipes.metrics import CLASSIFICATION
from kdtable.recipes.record import EpochRecord
from kdtable.store import RunRecord, Store, Worker
from kdtable.store.files import CHECKPOINT, EPOCHS, STUDENT
from kdtable.store.liveness import own_process
from kdtable.store.records import Protocol, TeacherRecord
from kdtable.store.schema import runs, workers

ME = own_process(os.getpid())
ORIGIN = {"source": "s1", "packages": {}, "numerics": {"threads": 1}}
IDENTITY = {"student": {"network": "resnet8"}, "seeds": "any"}
OTHER_IDENTITY = {"student": {"network": "resnet20"}}
ACCURACY = TeacherRecord("a" * 64, "digits", "resnet14", {"top1": 0.8, "top5": 0.9}, 449)


def row(run_id: str = "r1", identity: Mapping[str, Any] = IDENTITY, **changes: Any) -> RunRecord:
    protocol = Protocol(digest(identity), json.dumps(identity, sort_keys=True), "classification", CLASSIFICATION)
    planned = RunRecord(
        run_id,
        protocol,
        "crd",
        "kd",
        "resnet8",
        "resnet14",
        "0" * 64,
        "digits",
        None,
        seed=1,
        precision="fp32",
        epochs=3,
    )
    return replace(planned, **changes)


def own(name: str) -> dict[str, Any]:
    """An identity of a run's own, and the id that it has by that."""
    identity = {"run": name, "student": {"network": "resnet8"}, "recipe": {"momentum": 0.9, "weight_decay": 5e-4}}
    return {"identity": identity, "run_id": digest(identity | {"seed": 1})}


def record(epoch: int, top1: float = 0.5, top5: float = 0.9, **changes: Any) -> EpochRecord:
    metrics = {"top1": top1, "top5": top5, "train-top1": 0.4}
    measured = EpochRecord("main", epoch, 0.05, 1.0, metrics, {"ce": 1.0}, seconds=2.0, cohort_size=3)
    return replace(measured, **changes)


def columns(store: Store, run_id: str = "r1") -> RunRecord:
    (run,) = store.runs([run_id])
    return run


def top1s(store: Store, run_id: str = "r1") -> list[float]:
    """Of the epochs that the store has of a run."""
    return [epoch.metrics["top1"] for epoch in store.history(run_id)]


def top1_of(run: RunRecord, which: str) -> float | None:
    return (run.metrics_of(which) or {}).get("top1")


def origins(run: RunRecord) -> list[Any]:
    """Where a run's numbers came from."""
    return [json.loads(text) for text in run.provenance.origins]


def add(worker: Worker, run_id: str, *history: EpochRecord) -> None:
    """Record epochs of a run that the worker holds."""
    with worker.holding(run_id) as held:
        held.record(history)


def finish(worker: Worker, run_id: str, *history: EpochRecord) -> None:
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
        db.execute(workers.insert(), [values])
        db.execute(runs.update().where(runs.c.id.in_(run_ids)).values(status="running", claimed_by=values["id"]))
    return str(values["id"])


def beat(store: Store, worker: str) -> None:
    with store.database.write() as db:
        db.execute(workers.update().where(workers.c.id == worker).values(beat=workers.c.beat + 1))


def rewrite(store: Store, statement: str) -> None:
    """Change the store behind its back."""
    with store.database.write() as db:
        db.execute(sa.text(statement))


def workers_of(store: Store) -> list[str]:
    with store.database.read() as db:
        return list(db.execute(sa.select(workers.c.id)).scalars())


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state_of(run_id: str, history: list[EpochRecord]) -> dict[str, Any]:
    """The state of a run that has all its epochs behind it."""
    weight = torch.tensor([epoch.metrics["top1"] for epoch in history])
    group = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "params": [0]}
    return {
        "run": run_id,
        "position": 1,
        "epoch": len(history),
        "student": {"weight": weight},
        "method": {},
        "optimizer": {"state": {0: {"momentum_buffer": weight.clone()}}, "param_groups": [group]},
        "scaler": {},
        "history": [asdict(epoch) for epoch in history],
    }


def save_student(path: Path, state: dict[str, Any]) -> None:
    """What a run leaves when it is done."""
    three = (0.5, 0.5, 0.5)
    origin = student.Origin("resnet8", 10, 8, three, three, "digits", state["run"], {}, state["history"])
    student.save(path, state["student"], origin)


def train(
    store: Store,
    run_id: str,
    *top1s: float,
    done: bool = True,
    kept: str = "last",
    identity: Mapping[str, Any] = IDENTITY,
) -> None:
    """Plan a run of as many epochs as there are accuracies, and train it, with its files."""
    store.plan([row(run_id, identity, epochs=len(top1s))])
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
