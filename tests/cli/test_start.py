"""``--start``, ``--input-mean`` and ``--input-std``: the user's weights, and how their inputs were normalised."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdtable import models
from kdtable.data import resolve
from kdtable.execution.train_cohort import started_student
from kdtable.planning.given import GivenWeights, given_weights
from kdtable.planning.request import Changes, DataRequest, Request
from kdtable.planning.requested import plan_request
from kdtable.planning.run import Run
from kdtable.store import Store
from tests.cli.command import SMALL, TEACHER, Call, assert_refused
from tests.cli.test_export import run_of

PLAIN = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla", "--seeds", "1", "--epochs", "1", *SMALL)


def planned(given: GivenWeights, row: str = "vanilla") -> Run:
    """The run of a row on resnet14:resnet8 and the tiny set."""
    data, changes = DataRequest("npz:tiny.npz"), Changes(epochs=1, batch_size=16)
    request = Request(["resnet14:resnet8"], [row], [1], data=data, changes=changes)
    return plan_request(request, Path("teachers"), given)[0].run


def write_resnet8(path: Path, classes: int = 4, **metadata: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    state = models.build("resnet8", classes).state_dict()
    save_file(state, path, metadata or None)
    return state


def test_a_student_starts_from_an_earlier_one(after_grid: Path, call: Call) -> None:
    run = run_of(after_grid, "kd", 1)
    assert call("export", run, "-o", "mine.safetensors").code == 0
    done = call(*PLAIN, "--start", "resnet8=mine.safetensors")
    assert done.code == 0, done.err
    assert f"vanilla (start={run[:8]})" in done.out
    found = {one.id: one for one in Store(after_grid / "results").runs() if "start" in one.protocol.identity}
    (started,) = found
    assert found[started].protocol.identity["start"]["run"] == run
    shown = call("show", started).out
    assert "--start resnet8=FILE" in shown
    assert f"weights of resnet8 of run {run}" in " ".join(shown.replace("│", " ").split())


def test_the_weights_are_the_files(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    state = write_resnet8(tiny / "own.safetensors")
    given = given_weights(starts=[("res8", "own.safetensors")])
    run = planned(given)
    student = started_student(run, tiny / "results").state_dict()
    assert all(torch.equal(student[key], value) for key, value in state.items())
    assert run.id != planned(GivenWeights()).id
    assert run.protocol["start"]["mean"] == list(resolve("npz:tiny.npz").mean)


def test_a_classifier_of_other_classes_begins_at_random(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    state = write_resnet8(tiny / "own.safetensors", classes=9)
    student = started_student(planned(given_weights(starts=[("resnet8", "own.safetensors")])), tiny / "results")
    own = student.state_dict()
    same = {key for key, value in state.items() if own[key].shape == value.shape and torch.equal(own[key], value)}
    assert state.keys() - same == {"fc.weight", "fc.bias"}


def test_inputs_are_normalised_as_told(tiny: Path, call: Call) -> None:
    told = ("--input-mean", "resnet14=0.1,0.2,0.3", "--input-std", "resnet14=0.5,0.25,0.125")
    kd = ("run", "--pairs", "resnet14:resnet8", "--methods", "kd", "--seeds", "1", "--epochs", "1", *SMALL, *TEACHER)
    assert call(*kd).code == 0
    done = call(*kd, *told)
    assert done.code == 0, done.err
    runs = Store(tiny / "results").runs()
    means = [run.protocol.identity["teacher"]["mean"] for run in runs]
    assert sorted(means)[0] == [0.1, 0.2, 0.3]
    losses = {json.dumps([epoch.terms for epoch in Store(tiny / "results").history(run.id)]) for run in runs}
    assert len(losses) == 2
    (other,) = (run.id for run in runs if run.protocol.identity["teacher"]["mean"] == [0.1, 0.2, 0.3])
    shown = " ".join(call("show", other).out.split())
    assert "--input-mean resnet14=0.1,0.2,0.3" in shown
    assert "--input-std resnet14=0.5,0.25,0.125" in shown


def test_a_file_may_say_its_normalisation(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    write_resnet8(tiny / "own.safetensors", mean="[0.1, 0.2, 0.3]", std="[0.5, 0.5, 0.5]")
    student = started_student(planned(given_weights(starts=[("resnet8", "own.safetensors")])), tiny / "results")
    assert student.input_mean is not None
    np.testing.assert_allclose(student.input_mean.flatten(), [0.1, 0.2, 0.3], rtol=1e-6)
    assert load_file(tiny / "own.safetensors").keys() == student.state_dict().keys()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--start resnet8", ("--start takes NAME=FILE",)),
        ("--start resnet8=none.pth", ("--start resnet8: there is no file none.pth",)),
        ("--start resnet20=own.safetensors", ("--start resnet20 is the student of no run",)),
        ("--start resnet8=resnet14.pth", ("resnet14.pth is not a resnet8",)),
        ("--start resnet8=own.safetensors --input-mean resnet8=1,2,3", ("go together", "resnet8")),
        ("--input-mean resnet8=1,2,3 --input-std resnet8=1,1,1", ("neither --teacher nor --start",)),
        ("--start resnet8=own.safetensors --input-mean resnet8=1,2 --input-std resnet8=1,1,1", ("three numbers",)),
        ("--start resnet8=own.safetensors --input-mean resnet8=a,b,c --input-std resnet8=1,1,1", ("three numbers",)),
        ("--start resnet8=own.safetensors --input-mean resnet8=0,0,0 --input-std resnet8=1,0,1", ("positive",)),
        ("--start resnet8=said.safetensors --input-mean resnet8=0,0,0 --input-std resnet8=1,1,1", ("leave",)),
    ],
)
def test_what_cannot_be_started_from(words: str, parts: tuple[str, ...], tiny: Path, call: Call) -> None:
    write_resnet8(tiny / "own.safetensors")
    write_resnet8(tiny / "said.safetensors", mean="[0.1, 0.2, 0.3]", std="[0.5, 0.5, 0.5]")
    assert_refused(call(*PLAIN, *words.split()), *parts)
    assert not (tiny / "results").exists()
