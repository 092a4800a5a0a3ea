"""The command that `show` and the page give for a run makes that run."""

import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main

from kdtable import papers
from kdtable.cli import app
from kdtable.data.spec import BUILT_IN, IMAGENET, STREAMED, DataSpec
from kdtable.errors import BadRequest
from kdtable.execution.run_grid import store_row
from kdtable.planning.request import Changes, DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Sharding
from kdtable.planning.selection import parse_selection
from kdtable.planning.teacher_refs import FileTeacher
from kdtable.report.commands import command_of
from kdtable.store.records import RunRecord
from tests.papers.resolving import COCO, VOC
from tests.report.samples import stored

TINY = replace(
    BUILT_IN["cifar10"], name="tiny", key="tiny-12345678", kind="npz", path=Path("tiny.npz"), sha256="12345678" * 8
)
OWN = {"npz:tiny.npz": TINY, "coco": COCO, "voc": VOC}


def photos(kind: str, folder: str, size: int | None) -> DataSpec:
    size = size or IMAGENET.image_size
    found = replace(IMAGENET, key=f"{folder}-12345678-{size}", kind=kind, sha256="12345678" * 8, image_size=size)
    return found if kind == "imagenet" else replace(found, num_classes=200)


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets that need no file."""

    def resolved(name: str, size: int | None = None, **_: object) -> DataSpec:
        kind, _, folder = name.partition(":")
        return (
            photos(kind, folder or kind, size) if kind in STREAMED else OWN.get(name) or OWN.get(kind) or BUILT_IN[name]
        )

    monkeypatch.setattr("kdtable.papers.loader.resolve_data", resolved)


def teacher(name: str, data: DataSpec) -> FileTeacher:
    return FileTeacher(name, data.mean, data.std, name.ljust(64, "0"), Path(name))


def planned(**fields: Any) -> list[RunRecord]:
    return [store_row(one) for one in resolve(Request(**fields), teacher)]


def asked(command: str) -> Request:
    """What the command line asks for by a command."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("kdtable", "run")
    group = typer.main.get_command(app)
    options = group.commands["run"].make_context("run", words).params  # type: ignore[attr-defined]
    paper, pairs, rows, seeds = parse_selection(*(options[name] for name in ("paper", "pairs", "methods", "seeds")))
    devices = len(options["devices"].split(",")) if options["devices"] else 1
    return Request(
        pairs,
        rows,
        seeds,
        paper,
        options["reading"],
        DataRequest(options["data"], None, options["image_size"], options["skip_unreadable"]),
        Changes(options["epochs"], options["batch_size"], options["lr"], options["overrides"] or []),
        options["precision"],
        options["teacher_cache"],
        Sharding(devices, options["accumulate"], options["sync_batch_norm"]),
    )


def made_by(command: str | None) -> set[str]:
    assert command is not None
    return {one.run.id for one in resolve(asked(command), teacher)}


def assert_commands_make(found: list[RunRecord], some: Iterable[RunRecord] | None = None) -> None:
    known = {run.id: run for run in found}
    for run in found if some is None else some:
        refs = (run.protocol.identity["teacher"], run.protocol.identity.get("start"))
        needed = [known[ref["run"]] for ref in refs if ref and "run" in ref]
        command = command_of(run, needed)
        assert run.id in made_by(command), command


@pytest.mark.parametrize("paper", [name for name in papers.names() if papers.load(name).tables])
def test_every_row_of_every_paper(paper: str) -> None:
    loaded = papers.load(paper)
    name, pairs, rows, seeds = parse_selection(paper, None, None, None)
    found = planned(pairs=pairs, methods=rows, seeds=seeds[:1], paper=name)
    shown = {(run.row, run.data): run for run in found}
    assert shown
    assert_commands_make(found, shown.values())
    for reading in loaded.readings:
        read = planned(pairs=pairs, methods=rows, seeds=seeds[:1], paper=name, reading=reading)
        changed = {run.row: run for run in read if run.id not in {one.id for one in found}}
        assert changed
        assert_commands_make(read, changed.values())


@pytest.mark.parametrize(
    "changed",
    [
        {"changes": Changes(24, 32, 0.01)},
        {"changes": Changes(overrides=["weight_decay=0.0001", "milestones=100,200", "nesterov=true"])},
        {"changes": Changes(overrides=["weight.kd=0.5", "kd_temperature=2", "schedule.kd=off_until:5,steps:30/60"])},
        {"changes": Changes(24, None, 0.001, ["optimizer=adamw", "schedule=cosine", "lr_min=1e-5", "warmup_epochs=2"])},
        {"changes": Changes(overrides=["label_smoothing=0.1", "randaugment=2", "randaugment_magnitude=5", "ema=0.9"])},
        {"changes": Changes(overrides=["mixup=0.2", "cutmix=1", "schedule=linear", "nesterov=true"])},
        {"changes": Changes(24, overrides=["schedule.kd=warmup:20,of:240", "resnet56:*/weight.kd=0.5"])},
        {"precision": "bf16", "teacher_cache": "fp16", "seeds": (7, 9)},
        {"sharding": Sharding(2, 4)},
        {"data": DataRequest("npz:tiny.npz")},
        {"data": DataRequest("imagenet:photos", None, 160)},
    ],
)
def test_changes_of_the_user(changed: dict[str, Any]) -> None:
    wanted = {"pairs": ["resnet56:resnet20", "resnet56:ShuffleV1"], "methods": ["vanilla", "kd", "crd+kd"]}
    assert_commands_make(planned(**{"seeds": (1,), **wanted, **changed}))


def test_several_teachers_and_their_files() -> None:
    found = planned(pairs=["resnet110+resnet56:resnet20"], methods=["vanilla", "kd", "dkd", "at"], seeds=(1,))
    assert_commands_make(found)
    command = command_of(found[1])
    assert command is not None
    assert "--pairs resnet56+resnet110:resnet20" in command
    assert "--teacher resnet56=FILE --teacher resnet110=FILE" in command


def test_prerequisites_changes_are_in_the_command_too() -> None:
    wanted = {"pairs": ["resnet110:resnet20"], "methods": ["dih", "takd"], "seeds": (67,), "paper": "dih"}
    changes = Changes(epochs=20, overrides=["kept=last", "assistant=resnet56", "test_loss=false"])
    found = planned(**wanted, changes=changes)
    assert {run.row for run in found} == {"dih", "takd", "heads", "kd"}
    assert_commands_make(found)


def test_a_teacher_that_was_trained_before_adds_no_settings() -> None:
    (trained,) = planned(pairs=["resnet56:resnet56"], methods=["vanilla"], seeds=(1,), changes=Changes(5, None, 0.2))
    wanted = {"pairs": ["resnet56:resnet20"], "methods": ["kd"], "seeds": (1,)}
    (run,) = planned(**wanted, changes=Changes(9, None, 0.1))
    assert command_of(run, [trained]) == command_of(run)


def test_the_command_is_short() -> None:
    assert command_of(stored("kd")) == (
        "kdtable run --pairs resnet56:resnet20 --methods kd --seeds 1, --teacher resnet56=FILE"
    )
    assert command_of(stored("vanilla", 3)) == "kdtable run --pairs resnet20:resnet20 --methods vanilla --seeds 3,"


def test_an_unknown_paper_has_no_command() -> None:
    assert command_of(replace(stored("kd"), paper="gone")) is None
    assert command_of(replace(stored("kd"), row="gone")) is None
    with pytest.raises(BadRequest):
        papers.load("gone")
