"""Chosen points at which a command kills itself: a function is replaced in its own fork.

A point is reached at a call of a function: before it, after it, at the commit that it leads to, or half-way through
what it writes. Files are known by the names that they have on disk.
"""

import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.faults.trail import replaced

Arrange = Callable[[], None]
Wanted = Callable[..., bool]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(place: str, wanted: Wanted = lambda *_, **__: True, nth: int = 1) -> Arrange:
    """Die when the function is called the ``nth`` time with arguments that are ``wanted``."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        seen = 0

        def call(*args: Any, **options: Any) -> Any:
            nonlocal seen
            seen += wanted(*args, **options)
            if seen == nth:
                die()
            return original(*args, **options)

        return call

    return lambda: replaced(place, make)


def after(place: str, wanted: Wanted = lambda *_, **__: True) -> Arrange:
    """Die when the function has returned from a call with arguments that are ``wanted``."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            asked = wanted(*args, **options)
            result = original(*args, **options)
            if asked:
                die()
            return result

        return call

    return lambda: replaced(place, make)


def committing(place: str) -> Arrange:
    """Die in the next transaction of the thread that calls the function, when all is ready to be committed."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            caller = threading.get_ident()
            sa.event.listen(sa.Engine, "commit", lambda _: die() if threading.get_ident() == caller else None)
            return original(*args, **options)

        return call

    return lambda: replaced(place, make)


def following(place: str, then: Arrange) -> Arrange:
    """Do what ``then`` says once the function has returned."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            then()
            return result

        return call

    return lambda: replaced(place, make)


def half_saved(*parts: str) -> Arrange:
    """Die when half of a file that ``torch.save`` writes is on disk, of a content that has just these parts."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def save(content: dict[str, Any], file: io.BufferedWriter) -> None:
            if set(parts) != content.keys():
                original(content, file)
                return
            whole = io.BytesIO()
            original(content, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            die()

        return save

    return lambda: replaced("torch:save", make)


def half_student() -> Arrange:
    """Die when half of a student's file is on disk."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def save(path: Path, tensors: object, origin: object) -> None:
            original(path, tensors, origin)
            content = path.read_bytes()
            path.unlink()
            path.with_name(f".{path.name}.{'0' * 32}").write_bytes(content[: len(content) // 2])
            die()

        return save

    return lambda: replaced(SAVE_STUDENT, make)


def half_way(place: str) -> Arrange:
    """Die when a function that yields chunks has yielded the first of them, and that was dealt with."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def chunks(*args: Any) -> Any:
            for number, chunk in enumerate(original(*args)):
                if number:
                    die()
                yield chunk

        return chunks

    return lambda: replaced(place, make)


def failing_once(then: Arrange) -> Arrange:
    """Let a student's step fail, and do what ``then`` says."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(member: Any, *args: Any) -> Any:
            if type(member.method).__name__ == "KD":
                raise ValueError("made to fail")
            return original(member, *args)

        return step

    def arrange() -> None:
        replaced("kdtable.training.member:Member.step", make)
        then()

    return arrange


def _to(name: str) -> Wanted:
    """Of a move: that it makes a file of this name."""
    return lambda _, final: Path(final).name == name


def _staging(name: str) -> Wanted:
    """Of a move: that it makes the file which is moved to ``name`` next."""
    return lambda _, final: Path(final).name.startswith(f"{name}.")


def _named(name: str) -> Wanted:
    return lambda path, *_, **__: Path(path).name.startswith(name)


def _leaves_early_stage(member: Any) -> bool:
    return bool(member.stage.name != "main")


def _begins_main_stage(member: Any, *_: Any) -> bool:
    return member.stage.name == "main" and any(record.stage != "main" for record in member.history)


SAVE = "kdtable.checkpoints.checkpoint:save"
SAVE_STUDENT = "kdtable.checkpoints.student:save"
_STATE = ("run", "position", "epoch", "student", "method", "optimizer", "scaler", "history")

#: In the course of a grid; each is reached by a command that has all of it ahead.
GRID: dict[str, Arrange] = {
    "the store's tables are made": committing("kdtable.store.database:create"),
    "the grid is planned": committing("kdtable.store:Store.plan"),
    "the data set is read": before("torch:from_numpy"),
    "runs are being claimed": committing("kdtable.store:Worker.claim"),
    "runs were just claimed": after("kdtable.store:Worker.claim"),
    "the teacher is loaded": before("kdtable.execution.load_teacher:load_into"),
    "the teacher's accuracy is kept": committing("kdtable.store:Store.record_teacher"),
    "members are built": before("kdtable.execution.train_cohort:build_member", nth=3),
    "a run begins anew": committing("kdtable.store.claims:Held.restart"),
    "the teacher's pass over a batch": before("kdtable.training.teacher:FrozenTeacher.outputs", nth=2),
    "a stage is about to end": before("kdtable.training.member:Member.advance", _leaves_early_stage),
    "a stage was switched": after("kdtable.training.member:Member.advance", _leaves_early_stage),
    "the first step of a later stage": before("kdtable.training.member:Member.step", _begins_main_stage),
    "a student's backward pass": before("torch:Tensor.backward", nth=4),
    "a student's update": before("torch.optim:SGD.step", nth=5),
    "a student is measured": before("kdtable.training.member:Member.evaluate", nth=3),
    "before a checkpoint is written": before(SAVE, _named("checkpoint.pt")),
    "half of a checkpoint is written": half_saved(*_STATE),
    "a checkpoint is whole, not renamed": before("os:replace", _staging("checkpoint.pt")),
    "a checkpoint is beside its place": before("os:replace", _to("checkpoint.pt")),
    "a checkpoint was just renamed": after("os:replace", _to("checkpoint.pt")),
    "the checkpoint before was just renamed": after("os:replace", _to("checkpoint.previous.pt")),
    "between checkpoint and store": following(SAVE, before("kdtable.store.claims:Held.record")),
    "an epoch is committed": following(SAVE, committing("kdtable.store.claims:Held.record")),
    "an epoch was just committed": before("kdtable.cli.progress:GridDisplay.epoch"),
    "a failure's traceback is written": failing_once(before("os:replace", _to("error.txt"))),
    "a failure is committed": failing_once(committing("kdtable.store.claims:Held.fail")),
    "a heartbeat": committing("kdtable.store:Worker._beat"),
    "claims are released": committing("kdtable.store:Worker.release"),
    "between the last epoch and student.safetensors": before(SAVE_STUDENT),
    "half of student.safetensors is written": half_student(),
    "student.safetensors is beside its place": before("os:replace", _to("student.safetensors")),
    "student.safetensors was just renamed": after("os:replace", _to("student.safetensors")),
    "a run is marked as done": committing("kdtable.store.claims:Held.finish"),
    "a done run's checkpoint is removed": before(
        "os:unlink", lambda path: Path(path).name == "checkpoint.pt" and path.exists()
    ),
    "the worker leaves": committing("kdtable.store:Worker.__exit__"),
    "the table is printed": before("kdtable.cli.report:print_planned"),
}

#: In the course of a grid in which runs need artifacts that other runs leave; those are made first.
ARTIFACTS: dict[str, Arrange] = {
    "an artifact is written": half_student(),
    "an artifact has its name": after("os:replace", _to("student.safetensors")),
    "an artifact is registered": committing("kdtable.store.claims:Held.finish"),
    "an artifact was just registered": before("kdtable.checkpoints.checkpoint:discard"),
    "an artifact is read": before("kdtable.execution.load_teacher:run_folder"),
}

#: In the course of a teacher's download.
DOWNLOAD: dict[str, Arrange] = {
    "a part of the file has come": half_way("httpx:Response.iter_raw"),
    "all of it has come": before("kdtable.teachers.fetch:sha256_of"),
    "its checksum is pinned": before("os:replace", _to("checksums.toml")),
    "it was checked": before("os:replace", _to("resnet56.pth")),
    "it was just renamed": after("os:replace", _to("resnet56.pth")),
}

#: In the course of putting a trained teacher where plans find it.
INSTALLATION: dict[str, Arrange] = {
    "the trained network is read": before("kdtable.teachers.weights:read_weights", nth=2),
    "half of the teacher is written": before("shutil:copyfileobj"),
    "the teacher is whole, not renamed": before("os:replace", _to("resnet8.safetensors")),
    "the teacher was just renamed": after("os:replace", _to("resnet8.safetensors")),
}

#: While a teacher's outputs are kept.
CACHE: dict[str, Arrange] = {
    "it is told what the views are of": before("os:replace", _to("about.json")),
    "a view is kept without its tag": before("os:pwrite", nth=10),
    "a view was just kept": before("os:pwrite", nth=11),
}

#: While results are copied into another store.
COPY: dict[str, Arrange] = {
    "a student is copied": before("os:replace", _to("student.safetensors")),
    "an epoch's checkpoint is copied": before("os:replace", _to("main-0001.pt")),
    "files are there, rows are not": committing("kdtable.store.maintenance.copying:add_whole"),
    "runs are there, teachers are not": before("kdtable.store.maintenance.copying:_copy_teachers"),
}

#: While a store is pruned.
PRUNE: dict[str, Arrange] = {
    "the store says what will be kept": committing("kdtable.store.maintenance.pruning:prune"),
    "some files are gone": before("os:unlink", _named("main-"), nth=2),
    "a folder is empty": before("os:rmdir"),
}

POINTS: dict[str, Arrange] = GRID | ARTIFACTS | DOWNLOAD | INSTALLATION | CACHE | COPY | PRUNE
