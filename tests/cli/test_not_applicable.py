"""A method that cannot be run on a pair is planned as such; stages before the main one through the command line."""

import json
from pathlib import Path

from kdtable import papers
from kdtable.planning.given import GivenWeights
from kdtable.planning.request import Request
from kdtable.planning.teachers import teacher_finder
from kdtable.planning.trained_teachers import plan_teachers
from tests.cli.command import SMALL, Call, assert_refused, epochs_in, runs_in, write_teacher


def test_a_row_that_is_not_applicable(tiny: Path, call: Call) -> None:
    write_teacher(tiny / "wide.pth", "wrn_16_2")
    grid = ("run", "--pairs", "wrn_16_2:wrn_16_1", "--methods", "vanilla,fsp", "--epochs", "1", *SMALL)
    done = call(*grid, "--teacher", "wrn_16_2=wide.pth")
    assert done.code == 0
    assert "N/A" in done.out
    runs = {run["row"]: run for run in runs_in(tiny / "results").values()}
    assert (runs["vanilla"]["status"], runs["fsp"]["status"]) == ("done", "n/a")
    assert "channels" in str(runs["fsp"]["reason"])
    status = call("status")
    assert "1 done, 1 not applicable" in status.out
    assert "channels" in status.out
    cells = json.loads(call("report", "--format", "json").out)[0]["cells"]
    assert {cell["row"]: cell["asked"] for cell in cells}["fsp"] == 0


def test_a_stage_before_the_main_one(tiny: Path, call: Call) -> None:
    write_teacher(tiny / "own.pth", "resnet14")
    grid = ("run", "--pairs", "resnet14:resnet8", "--methods", "ab,fitnet-2stage", "--epochs", "2", *SMALL)
    assert call(*grid, "--teacher", "resnet14=own.pth").code == 0
    stages = {(str(e["stage"]), e["epoch"]) for e in epochs_in(tiny / "results")}
    assert stages == {("init", 1), ("hint", 1), ("main", 1), ("main", 2)}
    statuses = {str(run["row"]): run["status"] for run in runs_in(tiny / "results").values()}
    assert statuses == {"ab": "done", "fitnet-2stage": "done"}


def test_a_published_teacher_is_trained_by_its_papers_recipe() -> None:
    asked = (None, 1, Request((), (), (), paper=""), teacher_finder(Path("teachers"), GivenWeights()))
    (option_a,) = plan_teachers(["resnet110-a"], *asked)
    recipe = option_a.run.recipe
    assert (option_a.run.data.key, recipe.epochs, recipe.batch_size, recipe.lr) == ("cifar10", 200, 128, 0.1)
    assert [recipe.lr_at(epoch) for epoch in (1, 2)] == [0.01, 0.1]
    crd = [cell.run for cell in plan_teachers(["wrn_40_2", "cifar100/vgg13", "ResNet50"], *asked)]
    assert {(run.data.key, run.recipe) for run in crd} == {("cifar100", papers.load("crd").recipe)}
    (mobile,) = plan_teachers(["MobileNetV2"], *asked)
    assert mobile.run.recipe.lr == 0.01


def test_a_request_of_nothing_that_can_be_run(tiny: Path, call: Call) -> None:
    write_teacher(tiny / "wide.pth", "wrn_16_2")
    grid = ("run", "--pairs", "wrn_16_2:wrn_16_1", "--methods", "fsp", *SMALL, "--teacher", "wrn_16_2=wide.pth")
    assert "Not applicable: fsp on wrn_16_2:wrn_16_1" in call(*grid, "--dry-run").out
    done = call(*grid)
    assert done.code == 0
    assert "N/A: fsp on" in done.out


def test_images_that_a_network_cannot_take(tiny: Path, call: Call) -> None:
    import numpy as np

    with np.load(tiny / "tiny.npz") as file:
        arrays = {name: file[name] for name in file.files}
    small = {name: a[:, :, :4, :4] if a.ndim == 4 else a for name, a in arrays.items()}
    np.savez(tiny / "small.npz", **small)
    grid = ("run", "--pairs", "vgg8:vgg8", "--methods", "vanilla", "--data", "npz:small.npz", "--batch-size", "16")
    done = call(*grid)
    assert_refused(done, "vgg8 cannot take images of 4 x 4 pixels")
    assert not (tiny / "results").exists()


def test_a_teacher_is_not_overwritten(tiny: Path, call: Call) -> None:
    train = ("train-teachers", "resnet8", "--epochs", "1", *SMALL)
    assert call(*train).code == 0
    assert call(*train).code == 0  # the same run may be put there again
    assert_refused(call(*train, "--seed", "2"), "is another teacher", "--teachers-dir")
