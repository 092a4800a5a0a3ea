"""Runs as ``kdtable run --paper`` resolves them, and the members of cohorts that train as these runs say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kdtable import papers
from kdtable.data.spec import IMAGENET, DataSpec
from kdtable.execution.train_cohort import member_of
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.request import Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.planning.selection import parse_selection
from kdtable.planning.teacher_refs import FileTeacher
from kdtable.recipes.recipe import Recipe
from kdtable.training.member import Member
from kdtable.training.step import weighted_sum
from tests import engine

#: CUB-200-2011 as its authors split it.
CUB200 = replace(
    IMAGENET, name="cub200", key="cub200", kind="cub200", num_classes=200, train_count=5994, test_count=5794
)
#: COCO 2017's images with boxes, and VOC 2007 and 2012.
COCO = replace(
    IMAGENET, name="coco", key="coco", kind="coco", num_classes=80, image_size=800, train_count=117266, test_count=5000
)
VOC = replace(COCO, name="voc", key="voc", kind="voc", num_classes=20, train_count=16551, test_count=4952)
PHOTOGRAPHS = {"imagenet": IMAGENET, "cub200": CUB200, "coco": COCO, "voc": VOC}


@dataclass(frozen=True)
class Said:
    """What a paper says of how a row is trained.

    Attributes:
        recipe: of the main stage.
        terms: the weights of its loss, in the order of addition.
        params: hyper-parameters.
        stages: epochs of the stages before it.
        changing: terms whose weight changes over the epochs.
    """

    recipe: Recipe
    terms: Mapping[str, float]
    params: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    changing: Sequence[str] = ()


def teacher(name: str, data: DataSpec) -> FileTeacher:
    return FileTeacher(name, data.mean, data.std, name.ljust(64, "0"), Path(name))


def cells(paper: str, *rows: str, pairs: str | None = None, reading: str = "code") -> tuple[PlannedRun, ...]:
    """The cells of a paper's rows, by default those of its tables, on all its pairs, with its own seeds."""
    name, asked, _, seeds = parse_selection(paper, pairs, None, None)
    return resolve(Request(asked, rows, seeds, paper=name, reading=reading), teacher)


def runs(paper: str, *rows: str, reading: str = "code") -> dict[tuple[str, str, str], Run]:
    """The run of every data set, row and pair that is asked for, of the paper's first seed."""
    first = papers.load(paper).seeds[0]
    found = [cell for cell in cells(paper, *rows, reading=reading) if cell.run.seed == first and not cell.prerequisite]
    return {(cell.run.data.kind, cell.row, str(cell.pair)): cell.run for cell in found}


def run_of(paper: str, row: str, pair: str, data: str) -> Run:
    """One of a paper's runs."""
    return runs(paper, row)[data, row, pair]


def assert_said(run: Run, said: Said) -> None:
    """A run is trained as it is said to be, in everything but how weights change."""
    assert run.recipe == said.recipe
    assert list(run.objective.terms.items()) == list(said.terms.items())
    assert run.objective.named_params == said.params
    assert run.objective.stage_epochs == said.stages
    assert sorted(name for name, schedule in run.objective.schedules.items() if schedule.identity()) == sorted(
        said.changing
    )


def series(epochs: int, values: Mapping[int, float]) -> list[float]:
    """A number of each epoch, which has each of these values from an epoch on."""
    return [values[max(start for start in values if start <= epoch)] for epoch in range(1, epochs + 1)]


# --- what is trained ---------------------------------------------------------------------------------------------


def member(run: Run) -> Member:
    """A small network in the place of the run's, to be trained as the run says."""
    task = engine.task()
    small = replace(run, student="resnet8", data=task.images.spec, start=None)
    return member_of(small, lambda _: task, engine.teacher("resnet14"), Path())


@dataclass(frozen=True)
class Course:
    """A stage as a member trains it.

    Attributes:
        rates: the learning rate of each epoch.
        weights: of each term, its weight in the loss of each epoch.
        sweeps: how many training images the method is shown before each epoch; ``None`` for no sweep.
        optimizer: momentum, whether it is Nesterov's, and weight decay.
    """

    rates: list[float]
    weights: dict[str, list[float]]
    sweeps: list[int | None]
    optimizer: tuple[float, bool, float]


def courses(member: Member) -> dict[str, Course]:
    """All stages of a member, by name, without training them."""
    return {stage.name: _course(member, place) for place, stage in enumerate(member.stages)}


def _course(member: Member, place: int) -> Course:
    member._position, member.epoch = place, 0
    member._begin_stage()
    stage, (group,) = member.stage, member.optimizer.param_groups
    ones = list(torch.eye(len(stage.terms), dtype=torch.float64).unbind())
    rates, sweeps, weights = [], [], []
    for epoch in range(1, stage.recipe.epochs + 1):
        member.epoch = epoch - 1
        member.begin_epoch()
        rates.append(group["lr"])
        sweeps.append(member.sweep_limit)
        weights.append(weighted_sum(ones, stage, epoch).tolist())
    by_term = map(list, zip(*weights, strict=True))
    named = dict(zip((term.name for term in stage.terms), by_term, strict=True))
    return Course(rates, named, sweeps, (group["momentum"], group["nesterov"], group["weight_decay"]))
