"""From missing runs to cohorts."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.methods import get
from kdtable.methods.objective import Objective, Params
from kdtable.numerics.names import TEACHER_CACHES, split_precision
from kdtable.papers import Pair
from kdtable.planning.cohorts import (
    PlannedRun,
    cohorts,
    layers,
    missing,
)
from kdtable.planning.request import DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, RunTeacher
from kdtable.recipes.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=64, lr=0.05, milestones=())
DIGITS, CIFAR = BUILT_IN["digits"], BUILT_IN["cifar10"]


def teacher(name: str, data: DataSpec = DIGITS) -> FileTeacher:
    return FileTeacher(name, data.mean, data.std, name.ljust(64, "0"), Path(name))


OF_KD = Objective.of(Params, {"ce": 0.1, "kd": 0.9}, {"kd_temperature": 4.0})
METHODS = [get(name) for name in ("vanilla", "kd")]  # imported here, not while examples are drawn
TEACHERS = (None, teacher("resnet56"), teacher("vgg13"))
SUFFIXES = tuple(TEACHER_CACHES.values())


@st.composite
def requested(draw: st.DrawFn) -> Run:
    taught = draw(st.sampled_from(TEACHERS))
    recipe = replace(
        RECIPE,
        batch_size=draw(st.sampled_from((32, 64))),
        lr=draw(st.sampled_from((0.05, 0.01))),
        crop_padding=draw(st.sampled_from((2, 4))),
        crop_fill=draw(st.sampled_from(("zero", "reflect"))),
        mixup=draw(st.sampled_from((0.0, 0.2))),
        randaugment=draw(st.sampled_from((0, 2))),
        ema=draw(st.sampled_from((0.0, 0.9))),
    )
    return Run(
        "kd" if taught else "vanilla",
        draw(st.sampled_from(("resnet8", "resnet20"))),
        draw(st.sampled_from((DIGITS, CIFAR))),
        recipe,
        OF_KD if taught else Objective({"ce": 1.0}),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(("fp32", "bf16"))) + (draw(st.sampled_from(SUFFIXES)) if taught else ""),
        taught,
    )


RUNS = st.lists(requested(), max_size=25, unique_by=lambda run: run.id)


def stream(run: Run) -> tuple[object, ...]:
    computed, _ = split_precision(run.precision)
    r = run.recipe
    crops = r.crop_padding, r.crop_fill, r.randaugment, r.randaugment_magnitude
    return (run.seed, run.data.key, r.batch_size, *crops, r.mixup, r.cutmix, computed)


@given(RUNS)
def test_cohorts_hold_every_run_once(runs: list[Run]) -> None:
    planned = [run.id for cohort in cohorts(runs) for run in cohort.runs]
    assert sorted(planned) == sorted(run.id for run in runs)


@given(RUNS)
def test_a_cohort_shares_stream_and_teacher(runs: list[Run]) -> None:
    for cohort in cohorts(runs):
        assert len({stream(run) for run in cohort.runs}) == 1
        assert {run.teacher for run in cohort.runs} - {None} <= {cohort.teacher}
        assert len({run.teacher_cache for run in cohort.runs if run.teacher}) <= 1
        if cohort.teacher is not None:
            assert any(run.teacher for run in cohort.runs)


@given(RUNS)
def test_runs_without_a_teacher_join_a_taught_cohort(runs: list[Run]) -> None:
    taught = {stream(run) for run in runs if run.teacher}
    alone = [cohort for cohort in cohorts(runs) if cohort.teacher is None]
    assert all(stream(cohort.runs[0]) not in taught for cohort in alone)
    # No two cohorts could have been one.
    caches = [{run.teacher_cache for run in cohort.runs if run.teacher} for cohort in cohorts(runs)]
    keys = [(stream(c.runs[0]), c.teacher, *cache) for c, cache in zip(cohorts(runs), caches, strict=True)]
    assert len(set(keys)) == len(keys)


@given(RUNS)
def test_cohorts_come_seed_by_seed(runs: list[Run]) -> None:
    seeds = [cohort.runs[0].seed for cohort in cohorts(runs)]
    assert seeds == sorted(seeds)


@given(RUNS, st.data())
def test_what_is_done_is_left_out(runs: list[Run], data: st.DataObject) -> None:
    state = st.sampled_from(("done", "failed", "planned", "running", "missing"))
    statuses = {run.id: data.draw(state) for run in runs}
    cells = [PlannedRun(Pair("resnet56", run.student), run.row, run) for run in runs]
    ids = [run.id for run in missing(cells, statuses)]
    assert ids == [run_id for run_id, status in statuses.items() if status != "done"]
    assert not missing([replace(cell, not_applicable="no such layer") for cell in cells], statuses)


def test_a_run_of_two_pairs_is_trained_once() -> None:
    cells = resolve(
        Request(["resnet56:resnet20", "resnet110:resnet20"], ["vanilla", "kd"], [1], data=DataRequest("digits")),
        teacher,
    )
    runs = missing(cells, {})
    assert len(cells) == 4
    assert len(runs) == 3
    assert sum(len(cohort.runs) for cohort in cohorts(runs)) == 3


def needing(run: Run, *needs: str) -> Run:
    """A run that starts from what one other run trains, and learns from another's."""
    refs = [RunTeacher("resnet56", DIGITS.mean, DIGITS.std, need) for need in needs]
    return replace(run, **dict(zip(("teacher", "start"), refs, strict=False)))


def test_what_a_run_needs() -> None:
    (plain,) = (Run("kd", "resnet8", DIGITS, RECIPE, Objective({}), 1, teacher=teacher("resnet56")),)
    assert plain.needs == ()
    assert needing(plain, "a", "b").needs == ("a", "b")
    trained_here = replace(teacher("resnet56"), run="a")
    assert replace(plain, teacher=trained_here).needs == (), "its weights lie in a file"


@given(RUNS, st.randoms(use_true_random=False))
def test_layers_put_first_what_others_need(runs: list[Run], random: Random) -> None:
    made: list[Run] = []
    for run in runs:
        needs = [need.id for need in random.sample(made, min(len(made), random.randrange(3)))]
        made.append(needing(run, *needs))
    random.shuffle(made)
    left = {run.id: run for run in made if random.random() < 0.8}
    found = layers(left.values())
    assert sorted(run.id for layer in found for run in layer) == sorted(left)
    before: set[str] = set()
    for layer in found:
        for run in layer:
            assert not set(run.needs) & left.keys() - before
        before |= {run.id for run in layer}
    # Nothing comes later than it must.
    for earlier, layer in pairwise(found):
        assert all(set(run.needs) & {other.id for other in earlier} for run in layer)
