"""``--validation N``: held-out images choose the epoch, tables say so, and no table mixes the rules."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

import kdtable
from kdtable.store import RunRecord, Store
from tests.cli.command import SMALL, TEACHER, Call, assert_refused
from tests.faults.forks import Forks

RUN = ("run", "--pairs", "resnet14:resnet8", "--epochs", "2", *SMALL, *TEACHER, "--seeds", "1")
VALIDATED = (*RUN, "--methods", "vanilla,kd", "--validation", "8")
RULE = "Top-1 accuracy of the epoch of the best validation top-1 accuracy, measured on the test images once"


@pytest.fixture(scope="module")
def trained(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    shutil.copytree(supplies, folder, dirs_exist_ok=True)
    done = forks.run(folder, *VALIDATED)
    assert done.code == 0, done.err
    assert RULE in done.out
    assert "without 8 training images held out for validation" in done.out
    assert ", validation top-1 accuracy " in done.err
    return folder


@pytest.fixture
def there(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def runs(folder: Path) -> list[RunRecord]:
    with closing(Store(folder / "results", create=False)) as store:
        return store.runs()


def kd(folder: Path) -> RunRecord:
    return next(run for run in runs(folder) if run.row == "kd")


def test_the_kept_student_is_the_one_that_was_tested(there: Path, call: Call) -> None:
    run = kd(there)
    measured = run.metrics_of("validation")
    assert measured is not None
    done = call("evaluate", run.id, "--data", "npz:tiny.npz")
    assert f"top-1 accuracy {100 * measured['top1']:.2f} %, balanced {100 * measured['balanced']:.2f} %" in done.out
    assert "top1" not in (run.metrics_of("last") or {})
    assert call("store", "check").code == 0


def test_the_run_is_not_the_one_without(there: Path, call: Call) -> None:
    """The same command trains nothing; the one that ``show`` names is the same; without the option it is another."""
    before = {run.id for run in runs(there)}
    shown = call("show", kd(there).id).out
    (command,) = [line for line in shown.splitlines() if "kdtable run" in line]
    assert "--validation 8" in command
    assert "epoch of the best validation" in shown
    assert call(*VALIDATED, "--methods", "kd", "--dry-run").out.startswith("1 run: 1 done, 0 to train")
    assert call(*RUN, "--methods", "kd", "--dry-run").out.startswith("1 run: 0 done, 1 to train")
    assert {run.id for run in runs(there)} == before


def test_tables_of_the_two_rules_stay_apart(there: Path, call: Call) -> None:
    assert call(*RUN, "--methods", "vanilla,kd").code == 0
    both = json.loads(call("report", "--format", "json").out)
    assert [", 8 images held out: " in table["title"] for table in both] == [True, False]
    best, by_held_out = (call("report", "--epoch", rule) for rule in ("best", "validation"))
    assert "held out" not in best.out
    assert best.out.count("Recipe:") == by_held_out.out.count("Recipe:") == 1
    assert RULE in " ".join(by_held_out.out.split())
    assert call("report", "--format", "html", "-o", "page.html").code == 0
    assert "By validation" in (there / "page.html").read_text()
    values = kdtable.results(there / "results").values().query("metric == 'top1'")
    assert sorted(values["rule"]) == ["last", "last", "validation", "validation"]


def test_other_rules_are_refused_for_held_out_runs(there: Path, call: Call) -> None:
    for rule in ("last", "best", "lowest-loss"):
        assert_refused(
            call("report", "--epoch", rule),
            f"these runs chose their epoch by held-out images and measured the test set once, so they have no {rule} "
            f"epoch on it: leave out --epoch {rule}",
        )
    shown = kdtable.results(there / "results").table(metric="validation-top1", epoch="validation")
    assert shown.set_index("row")["n"].to_dict() == {"teacher": 0, "student": 1, "kd": 1}


def test_the_curve_is_that_of_held_out_images(there: Path, call: Call) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra 'figures'")
    done = call("plot", "curves", "-o", "curves.svg")
    assert (done.code, done.err) == (0, "")
    assert "validation top-1 accuracy" in (there / "curves.svg").read_text()


def test_the_validation_rule_needs_held_out_images(after_grid: Path, call: Call) -> None:
    assert_refused(
        call("report", "--epoch", "validation"),
        "no run here held out images to choose its epoch by: train with --validation N",
    )


def test_a_teacher_cache_has_the_smaller_set(tiny: Path, call: Call) -> None:
    done = call(*VALIDATED, "--methods", "kd", "--epochs", "1", "--teacher-cache", "fp32")
    assert done.code == 0, done.err
    (about,) = (tiny / "views").glob("*/about.json")
    assert json.loads(about.read_text())["images"] == 40


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        ("0", "--validation 0 holds out no image: use at least 1, or leave it out"),
        ("45", "--validation 45 leaves too little to train on: tiny has 48 training images of 4 classes"),
        ("some", "takes a whole number, not 'some'"),
        ("40", "has 8 training images, fewer than one batch of 16: use --batch-size"),
    ],
)
def test_impossible_counts_are_refused(tiny: Path, call: Call, count: str, sentence: str) -> None:
    assert_refused(call(*VALIDATED, "--validation", count), sentence)
    assert not (tiny / "results").exists()


def test_a_class_with_nothing_left_is_refused(tiny: Path, call: Call) -> None:
    import numpy as np

    from tests.cli.command import write_images

    write_images(tiny / "tiny.npz", {"train_labels": np.array([0] * 45 + [1, 2, 3], np.uint8)})
    assert_refused(
        call(*VALIDATED, "--validation", "30"),
        "--validation 30 holds out 1 images of class 1 of tiny, which has 1: nothing of it is left to train on",
    )
    assert not (tiny / "results").exists()
