"""Warnings about single runs."""

import math
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest

from kdtable.papers import load, names
from kdtable.planning.overrides import Overrides
from kdtable.recipes.schedule import Schedule
from kdtable.report.warnings import (
    best_guess,
    flags,
    lacking,
    measured,
    with_warnings,
)
from kdtable.store.records import TeacherRecord
from kdtable.store.shown import ShownRuns
from tests.report.samples import CIFAR100, CRD, TOP1, measured_on, only, stored

OWN = replace(CIFAR100, kind="npz", key="own-0", sha256="0" * 64, num_classes=4)


def reached(top1: float, *, claimed: float | None = 72.34, **about: Any) -> TeacherRecord:
    return measured_on(top1, claimed=claimed, **about)


def test_a_run_as_its_paper_has_it_is_not_flagged() -> None:
    for row in ("vanilla", "kd", "at+kd", "crd"):
        assert flags(stored(row), measured([reached(0.7234)])) == []
    assert flags(stored("kd", top1=None, status="planned"), {}) == []
    mobile = CRD.recipe_for("MobileNetV2")
    assert flags(stored("kd", student="MobileNetV2", recipe=mobile), {}) == []


def test_a_teacher_that_was_trained_by_its_own_papers_recipe_is_not_flagged() -> None:
    he = load("he2015")
    for network in ("resnet20_a", "resnet110_a"):
        run = stored("vanilla", student=network, recipe=he.recipe_for(network))
        assert flags(replace(run, paper="he2015"), {}) == []
        assert "differs from that of crd" in flags(replace(run, paper="crd"), {})[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 24, "milestones": (15, 18, 21)}, "epochs 24 for 240; milestones 15, 18, 21 for 150, 180, 210"),
        ({"lr": 0.1}, "lr of resnet20 0.1 for 0.05"),
        ({"batch_size": 32}, "batch_size 32 for 64"),
        ({"weight_decay": 0.0}, "weight_decay 0.0 for 0.0005"),
        ({"nesterov": True}, "nesterov True for False"),
        ({"crop_padding": 0}, "crop_padding 0 for 4"),
        ({"first_epoch_lr": 0.01}, "first_epoch_lr 0.01 for none"),
    ],
)
def test_another_recipe_is_flagged(changes: dict[str, object], text: str) -> None:
    run = stored("kd", recipe=replace(CRD.recipe, **changes))  # type: ignore[arg-type]
    assert flags(run, {}) == [f"the recipe differs from that of crd: {text}"]


def test_a_paper_that_is_not_known_is_said_so() -> None:
    assert "paper later is not known here" in flags(replace(stored("kd"), paper="later"), {})[0]


def test_another_reading_of_a_paper_is_no_departure() -> None:
    for paper in (one for one in map(load, names()) if one.task == "classification"):
        for read in (paper, *map(paper.read_as, paper.readings)):
            run = replace(stored("vanilla", recipe=read.recipe_for("resnet20")), paper=paper.name)
            assert flags(run, {}) == []


def test_other_settings_are_flagged() -> None:
    run = stored("kd", terms={"kd": 0.5}, params={"kd_temperature": 2.0})
    assert flags(run, {}) == ["settings of kd differ from the paper's: weight.kd=0.5, kd_temperature=2.0"]


def test_schedules_that_are_not_the_rows_are_flagged() -> None:
    ramp = Schedule(ramp=5, steps=(8, 9), factor=0.5)
    run = stored("kd", schedules={"kd": ramp})
    assert flags(run, {}) == ["settings of kd differ from the paper's: schedule.kd=factor:0.5,ramp:5,steps:8/9"]
    text = flags(run, {})[0].split("schedule.")[1]
    assert Overrides([f"schedule.{text}"]).schedules({"kd": 1.0}, {}) == {"kd": ramp}
    assert only(run).labels == ["kd (schedule.kd=factor:0.5,ramp:5,steps:8/9)"]


@pytest.mark.parametrize("epochs", [200, 20])
def test_a_papers_own_schedules_are_no_change(epochs: int) -> None:
    paper = load("cd")
    row, recipe = paper.row("cd+gkd+edt"), paper.recipe.scaled(epochs)
    changing = {term: schedule.scaled(epochs, 200) for term, schedule in row.schedules.items()}
    run = stored("cd+gkd+edt", recipe=recipe, paper=paper, schedules=changing)
    assert not any("settings" in text for text in flags(run, {}))
    earlier = stored("cd+gkd+edt", recipe=recipe, paper=paper, schedules={"cd": changing["cd"]})
    assert flags(earlier, {})[-1] == (
        "settings of cd+gkd+edt differ from the paper's: schedule.ce=ramp:0, schedule.gkd=ramp:0"
    )


@pytest.mark.parametrize("reason", ["the loss became NaN in epoch 1", "the loss became infinite in epoch 3"])
def test_a_diverged_run_is_flagged(reason: str) -> None:
    assert flags(replace(stored("kd", top1=None, status="failed"), reason=reason), {}) == [
        "the loss became NaN or infinite"
    ]


def test_another_failure_is_no_divergence() -> None:
    for reason in ("OSError: the disk is full", None):
        assert flags(replace(stored("kd", top1=None, status="failed"), reason=reason), {}) == []


def test_what_is_not_applicable_is_not_flagged() -> None:
    assert flags(stored("kd", top1=None, status="n/a", recipe=replace(CRD.recipe, lr=0.1)), {}) == []


LOST = "the student never left chance level"


def test_two_standard_errors_above_chance_is_not_chance() -> None:
    # 1 % and 0.0995 points for 100 classes and 10,000 images
    error = math.sqrt(0.01 * 0.99 / 10000)
    assert best_guess(0.01, 10000, 1) == pytest.approx(0.01 + 2 * error)


def test_the_best_of_many_epochs_is_granted_more_luck() -> None:
    """As rarely as one guess is two errors above chance, the best of 240 is 3.7 above it."""
    assert flags(stored("kd", top1=0.0136), {}) == [LOST]
    assert flags(stored("kd", top1=0.0138), {}) == []
    assert flags(stored("kd", top1=0.0), {}) == [LOST]


def test_guessers_are_found_as_often_whatever_their_epochs() -> None:
    draw = random.Random(1)
    for epochs in (1, 12, 240):
        best = [max(draw.gauss(0.1, 0.003) for _ in range(epochs)) for _ in range(1000)]
        assert 0.96 < statistics.fmean(value <= best_guess(0.1, 10000, epochs) for value in best) < 0.99


def test_the_best_epoch_counts_and_only_at_the_end() -> None:
    assert flags(stored("kd", top1=0.01, best=0.3), {}) == []
    for status in ("running", "planned", "failed"):
        assert flags(stored("kd", top1=0.01, status=status), {}) == []


def test_the_test_set_of_an_own_data_set() -> None:
    """Its size is that of the row, or else what the teacher was measured on; without either nothing is granted."""
    # Chance is 25 %, and its standard error on 100 images 4.3 points.
    run = replace(stored("kd", top1=0.30, data=OWN), test_images=None)
    assert LOST in flags(replace(run, test_images=100), {})
    assert LOST not in flags(replace(run, test_images=10000), {})
    assert LOST in flags(run, measured([reached(0.9, data="own-0", images=100, claimed=None)]))
    assert LOST not in flags(run, {})
    assert LOST in flags(replace(stored("kd", top1=0.25, data=OWN), test_images=None), {})


@pytest.mark.parametrize(
    ("row", "falls"),
    [
        (reached(0.7185), False),  # 0.49 points on the whole test set
        (reached(0.7183), True),  # 0.51 points
        (reached(0.70, data="own-0", images=1000), False),  # 2.34 points, 1.6 standard errors
        (reached(0.69, data="own-0", images=1000), True),  # 3.34 points, 2.3 standard errors
        (reached(0.7190, data="own-0", images=10**8), False),  # many standard errors, but 0.44 points
        (reached(0.0, data="own-0", images=10), True),
        (reached(0.1, claimed=None), False),
        (reached(0.99), False),
    ],
)
def test_a_teacher_below_its_claim(row: TeacherRecord, falls: bool) -> None:
    assert (lacking(row, TOP1) is not None) == falls
    run = stored("kd", data=OWN if row.data == "own-0" else CIFAR100)
    assert any("its source claims 72.34 %" in text for text in flags(run, measured([row]))) == falls


def test_a_student_without_a_teacher_has_no_teachers_flag() -> None:
    assert flags(stored("vanilla"), measured([reached(0.1)])) == []


def test_the_published_excerpt_teacher_is_not_flagged() -> None:
    """92.72 % of 1,017 images for a claim of 93.39 %: less than one standard error."""
    assert lacking(reached(0.9272, data="cifar10_excerpt-0", images=1017, claimed=93.39), TOP1) is None
    assert lacking(reached(0.9272, data="cifar10", claimed=93.39), TOP1) is not None


def test_flags_of_many_runs_name_the_runs() -> None:
    short = replace(CRD.recipe, epochs=24)
    runs = [stored("kd", seed, recipe=short) for seed in (1, 2)] + [stored("at", 1, 0.001), stored("crd")]
    found = with_warnings(ShownRuns.of(runs), {})
    assert found == {
        "the recipe differs from that of crd: epochs 24 for 240": [runs[0].id, runs[1].id],
        LOST: [runs[2].id],
    }
    assert found == {text: [r.id for r in runs if text in flags(r, {})] for text in found}


def test_what_another_task_measures_is_no_guess() -> None:
    run = stored("kd", top1=0.001)
    assert flags(run, {}) == [LOST]
    assert flags(replace(run, protocol=replace(run.protocol, task="regression")), {}) == []
