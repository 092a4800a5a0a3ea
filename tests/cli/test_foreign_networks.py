"""Networks of timm and torchvision as teachers and students, through the command line."""

import json
from pathlib import Path

import pytest
import torch

from kdtable import models
from kdtable.files.tensor_file import TensorFile
from kdtable.models import foreign
from kdtable.papers import Pair
from kdtable.papers import load as load_paper
from kdtable.planning.selection import parse_pairs
from kdtable.teachers import hub
from tests.cli.command import SMALL, Call, Shell, assert_refused, runs_in, write_teacher
from tests.cli.test_completion import completed

pytest.importorskip("timm", reason="timm is not installed")

PAIRS = "timm:test_vit:resnet8,resnet14:timm:test_resnet,timm:test_vit:timm:test_resnet"
RUN = ("run", "--pairs", PAIRS, "--methods", "vanilla,kd,at,crd,sp,dih", "--seeds", "1", "--epochs", "1", *SMALL)
FILES = ("--teacher", "timm:test_vit=vit.pth", "--teacher", "resnet14=resnet14.pth")
CRD = ("--set", "negatives=16", "--set", "dim=8")


def test_a_grid_with_teachers_and_students_of_timm(tiny: Path, call: Call) -> None:
    write_teacher(tiny / "vit.pth", "timm:test_vit")
    done = call(*RUN, *FILES, *CRD)
    assert done.code == 0, done.err
    runs = runs_in(tiny / "results").values()
    status = {(run["teacher"], run["student"], run["row"]): run["status"] for run in runs}
    assert status["timm:test_vit", "timm:test_resnet", "kd"] == "done"
    assert status["timm:test_vit", "resnet8", "crd"] == "done"
    assert status["timm:test_vit", "resnet8", "sp"] == "n/a"
    assert status["resnet14", "timm:test_resnet", "sp"] == "done"
    reasons = {run["row"]: run["reason"] for run in runs if run["teacher"] == "timm:test_vit"}
    assert reasons["at"] == reasons["sp"] == "the teacher shows no feature maps"
    assert "timm:test_vit shows no feature maps for extra classifiers" in str(reasons["dih"])
    # the version of timm is kept with the runs that it gave a network, and only with them
    made = {
        (r["teacher"], r["student"], r["row"]): json.loads(r["provenance"]["origins"][0])["packages"]
        for r in runs
        if r["status"] == "done"
    }
    assert "timm" in made[None, "timm:test_resnet", "vanilla"]
    assert "timm" in made["timm:test_vit", "resnet8", "kd"]
    assert "timm" not in made[None, "resnet8", "vanilla"]
    # a teacher of timm's, from a file that says nothing, has the inputs that timm's own weights have
    identities = [run["identity"] for run in runs if run["teacher"] == "timm:test_vit"]
    assert {tuple(one["teacher"]["mean"]) for one in identities if one["teacher"]} == {(0.5, 0.5, 0.5)}
    shown = call("show", "tiny:kd:timm:test_vit:timm:test_resnet")
    assert shown.code == 0, shown.err
    latex = call("report", "--format", "latex").out
    assert r"timm:test\_vit" in latex
    assert call("report", "--format", "html", "-o", "page.html").code == 0
    assert "timm:test_vit → timm:test_resnet" in (tiny / "page.html").read_text()


def test_pairs() -> None:
    assert parse_pairs(["timm:test_vit:resnet8", "resnet14 : timm:test_resnet"], load_paper("crd")) == [
        Pair("timm:test_vit", "resnet8"),
        Pair("resnet14", "timm:test_resnet"),
    ]


def test_bad_requests(tiny: Path, call: Call) -> None:
    run = ("run", "--methods", "vanilla", "--seeds", "1", *SMALL)
    assert_refused(call(*run, "--pairs", "timm:resnet8:resnet8"), "unknown network of timm 'resnet8'; did you mean")
    assert_refused(call(*run, "--pairs", "timm:resnet18:resnet8:resnet8"), "names 3 networks: write TEACHER:STUDENT")
    assert_refused(call(*run, "--pairs", "timm:resnet18"), "unknown pair 'timm:resnet18'")
    assert_refused(call(*run, "--pairs", "resnet8:timm:levit_128"), "timm:levit_128 cannot be used", "one linear layer")
    kd = ("run", "--methods", "kd", "--pairs", "timm:test_vit:resnet8", "--seeds", "1", *SMALL)
    assert_refused(call(*kd), "there is no teacher timm:test_vit", "kdtable train-teachers timm:test_vit --data npz:")
    write_teacher(tiny / "other.pth", "timm:test_resnet")
    assert_refused(call(*kd, "--teacher", "timm:test_vit=other.pth"), "other.pth is not a timm:test_vit")


def test_weights_that_cannot_be_downloaded(shell: Shell) -> None:
    """No host can be reached: one sentence for each library."""
    shell = Shell(shell.folder, {"HF_HUB_OFFLINE": "1", "HF_HOME": "cache", "TORCH_HOME": "cache"})
    for name in ("timm:resnet10t", "torchvision:resnet18"):
        done = shell.run("fetch-teachers", name)
        assert (done.code, len(done.errors)) == (1, 1), done.err
        assert f"the weights of {name} cannot be downloaded" in done.err
        assert f"name a file with --teacher {name}=FILE" in done.err


def test_fetched_weights_say_their_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download itself needs a network; what is made of it does not."""
    state = models.build("timm:test_vit", 1000, image_size=160).state_dict()
    monkeypatch.setattr(foreign, "pretrained", lambda name: state)
    path = hub.fetch("timm:test_vit", tmp_path)
    assert path == tmp_path / "imagenet" / "timm:test_vit.safetensors"
    with path.open("rb") as file:
        content = TensorFile(file)
        assert json.loads(content.metadata["mean"]) == [0.5, 0.5, 0.5]
        assert all(torch.equal(state[key], tensor) for key, tensor in content.load().items())
    monkeypatch.setattr(foreign, "pretrained", lambda name: pytest.fail("it is there"))
    assert hub.fetch("timm:test_vit", tmp_path) == path


def test_students_start_from_such_weights_for_other_classes(tiny: Path, call: Call) -> None:
    write_teacher(tiny / "start.pth", "torchvision:resnet18", classes=7)
    grid = ("run", "--pairs", "resnet14:torchvision:resnet18", "--methods", "vanilla", "--seeds", "1", "--epochs", "1")
    done = call(*grid, *SMALL, "--start", "torchvision:resnet18=start.pth")
    assert done.code == 0, done.err
    (run,) = runs_in(tiny / "results").values()
    assert run["identity"]["start"]["mean"] == [0.485, 0.456, 0.406]


def test_lists_and_completion(call: Call) -> None:
    listed = [row["network"] for row in json.loads(call("list", "models", "--format", "json").out)]
    assert {"timm:NETWORK", "torchvision:NETWORK"} <= set(listed)
    assert "timm:" in completed("kdtable", "run", "--pairs", "tim")
    assert "test_resnet:" in completed("kdtable", "run", "--pairs", "timm", ":", "test_res")
    assert "resnet8" in completed("kdtable", "run", "--pairs", "timm", ":", "test_resnet", ":", "resnet8")
    assert "test_vit" in completed("kdtable", "run", "--pairs", "resnet8", ":", "timm", ":", "test_v")
