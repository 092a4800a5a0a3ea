"""MLKD from the command to its table, beside rows that see the same two views, and what two views refuse."""

from pathlib import Path

import pytest

from tests.cli.command import SMALL, TEACHER, Call, runs_in

RUN = ("run", "--paper", "mlkd", "--pairs", "resnet14:resnet8", "--seeds", "1", "--epochs", "1", *SMALL)


def test_a_table_of_two_views(tiny: Path, call: Call) -> None:
    done = call(*RUN, "--methods", "vanilla,kd,mlkd", *TEACHER)
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    assert "zero-padded crop 4, two views of each image, one by RandAugment (2 x magnitude 10); fp32" in told
    assert "Recipe: 1 epoch, batch 16, SGD lr 0.025" in told
    assert {run["row"]: run["status"] for run in runs_in(tiny / "results").values()} == dict.fromkeys(
        ("vanilla", "kd", "mlkd"), "done"
    )
    again = call(*RUN, "--methods", "mlkd", "--reading", "paper", *TEACHER)
    assert again.code == 0, again.err
    assert len(runs_in(tiny / "results")) == 4
    for table, epochs in (("mlkd-1", 240), ("mlkd-2", 480)):
        shown = call("report", "--table", table)
        assert shown.code == 0, shown.err
        told = " ".join(shown.out.split())
        assert f"MLKD, two views of each image (one by RandAugment), {epochs} epochs" in told


@pytest.mark.parametrize("asked", ["at", "mlkd", "at+mlkd"])
def test_methods_and_views_that_do_not_fit_are_not_applicable(asked: str, tiny: Path, call: Call) -> None:
    paper, reason = {
        "at": ("mlkd", "its own terms see one view of an image, and views gives two"),
        "at+mlkd": ("mlkd", "mlkd cannot be combined: it reads two views of an image"),
        "mlkd": ("crd", "it compares two views of an image: use --paper mlkd, or add --set views=weak-strong"),
    }[asked]
    done = call(*RUN[:2], paper, *RUN[3:], "--methods", asked, *TEACHER, "--dry-run")
    assert done.code == 0, done.err
    assert f"Not applicable: {asked} on resnet14:resnet8, seed 1: {reason}" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--set", "randaugment=0"), "views=weak-strong makes the strong view by RandAugment: add --set randaugment=2"),
        (("--set", "mixup=0.2"), "views=weak-strong mixes no images: leave it or mixup out"),
        (("--teacher-cache", "fp32"), "two views of an image are new in every epoch"),
        (("--set", "views=weak"), "views"),
        (("--methods", "mlkd+kd"), "mlkd has soft targets of its own"),
        (("--set", "temperatures=4,0"), "temperatures are above 0, like 2,3,4,5,6, not 4,0"),
        (
            ("--paper", "moco-cifar", "--methods", "moco", "--set", "views=weak-strong"),
            "takes two views of an image of its own",
        ),
    ],
)
def test_bad_requests(more: tuple[str, ...], sentence: str, tiny: Path, call: Call) -> None:
    done = call(*RUN, "--methods", "mlkd", *more, *TEACHER)
    assert (done.code, done.out) == (2, "")
    (error,) = done.errors
    assert sentence in error
    assert not (tiny / "results").exists()
