"""Time detectors: a cohort of methods beside solo runs and a plain loop, and COCO's evaluation.

Parts alternate in one process, on networks with random weights and generated images that are resized to --image-size:

- cohort: a step of every student beside one pass of the teacher, as `kdtable run` trains them.
- solo: the same students, each in a cohort of its own.
- plain: the same networks and losses in a loop as a script has it: next batch, teacher, student, losses, optimiser, for
  one student after another on one thread.
- teacher, students: one pass of the teacher and each student's own work, measured alone: T and S. With n students a
  cohort should take (T + sum of S) / (n T + sum of S) of the solo runs' CPU time, and at most 1.1 times that.

Then COCO's twelve numbers of --evaluated images of 80 classes with 100 random detections each, on one core. The last
line is JSON.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from bench_tools import (
    Endless,
    Spent,
    at_main_stage,
    by_turns,
    circumstances,
    cohort_step,
    own_work,
    positive,
    random_teacher,
    ratios,
    shown,
    spent,
    total,
    wall_and_cpu,
)
from torch import nn

from kdtable import methods, papers
from kdtable.data.detection.annotations import Annotated, ground_truth
from kdtable.data.detection.sets import load
from kdtable.data.spec import BUILT_IN
from kdtable.errors import BadRequest
from kdtable.methods.objective import Objective
from kdtable.numerics.layout import fix_threads, keep_freed_memory
from kdtable.numerics.precision import Precision, choose, choose_device
from kdtable.papers import Pair
from kdtable.planning.selection import parse_pairs
from kdtable.planning.task_checks import check_networks
from kdtable.tasks.coco import measured
from kdtable.tasks.detection import Detection
from kdtable.training.build import build_member, build_student
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher

PAPER: Final = papers.load("detection")
#: So low that nothing diverges with random weights.
LR: Final = 1e-6
CLASSES: Final = 80
#: Boxes and detections of an image: COCO's validation images have 7.3 boxes on average.
BOXES, FOUND = 7, 100
SIDES: Final = (480, 640)


class Generated(Endless, Detection):
    """Generated images, resized."""

    def __init__(self, size: int, batch_size: int, precision: Precision) -> None:
        spec = replace(BUILT_IN["shapes"], image_size=size, train_count=max(32, batch_size), test_count=1)
        self.recipe = replace(PAPER.recipe, batch_size=batch_size, lr=LR)
        super().__init__(load(spec), self.recipe, 1, precision)


def new_member(row: str, pair: Pair, task: Generated, teacher: nn.Module) -> Member:
    settings, kind = PAPER.row(row), methods.get(row, "detection")
    terms = settings.terms_for(pair.teacher, pair.student)
    objective = Objective.of(kind.hyper, terms, settings.params_for(pair.student, pair.teacher))
    student = build_student(pair.student, task.images.spec, 1)
    return at_main_stage(build_member(row, kind, objective, task.recipe, student=student, teacher=teacher, task=task))


class Bench:
    """The networks, and what is measured of them."""

    def __init__(self, pair: Pair, rows: Sequence[str], size: int, batch_size: int, precision: Precision) -> None:
        self.task = Generated(size, batch_size, precision)
        self.network = random_teacher(pair.teacher, self.task, lambda one, batch: one.blank(batch, frozenset()))
        self.teacher = FrozenTeacher(self.network, self.task)
        self.members = [new_member(row, pair, self.task, self.network) for row in rows]
        reads = frozenset[str]().union(*(member.stage.teacher_features for member in self.members))
        self.needs = self.task.shared_features(reads)

    def cohort(self) -> Spent:
        return cohort_step(self.task, self.teacher, self.members)

    def solo(self) -> Spent:
        return total([cohort_step(self.task, self.teacher, [member]) for member in self.members])

    def plain(self) -> Spent:
        def step(member: Member) -> None:
            batch = self.task.next_batch()
            with torch.no_grad():
                outputs = self.task.forward(
                    self.network, batch, self.task.shared_features(member.stage.teacher_features)
                )
            own_work(member, batch, outputs)

        return total([self._of(member, partial(step, member)) for member in self.members])

    def teacher_alone(self) -> Spent:
        batch = self.task.next_batch()
        return spent(lambda: self.teacher.outputs(batch, self.needs), self.task.device)

    def students_alone(self) -> Spent:
        batch = self.task.next_batch()
        outputs = self.teacher.outputs(batch, self.needs)
        return total([self._of(member, partial(own_work, member, batch, outputs)) for member in self.members])

    def _of(self, member: Member, work: Any) -> Spent:
        member.begin_epoch()
        return spent(work, self.task.device)


def evaluation(images: int) -> float:
    """Seconds for COCO's numbers of random boxes and detections."""
    draw = np.random.default_rng(1)
    truth = ground_truth([_annotated(draw) for _ in range(images)], CLASSES)
    found = np.concatenate([_detections(draw, image) for image in range(1, images + 1)])
    started = time.perf_counter()
    measured(truth, found)
    return time.perf_counter() - started


def _corners(draw: np.random.Generator, count: int) -> Any:
    height, width = SIDES
    low, sides = (
        draw.uniform(0, 0.6, (count, 2)) * (width, height),
        draw.uniform(0.02, 0.4, (count, 2)) * (width, height),
    )
    return np.concatenate([low, low + sides], axis=1)


def _annotated(draw: np.random.Generator) -> Annotated:
    return Annotated.plain(SIDES, _corners(draw, BOXES).tolist(), draw.integers(0, CLASSES, BOXES).tolist())


def _detections(draw: np.random.Generator, image: int) -> Any:
    corners = _corners(draw, FOUND)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    labels = draw.integers(1, CLASSES + 1, (FOUND, 1))
    return np.concatenate([np.full((FOUND, 1), float(image)), boxes, draw.uniform(size=(FOUND, 1)), labels], axis=1)


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pair", default="fasterrcnn_resnet50_bn:fasterrcnn_resnet18_bn", help="teacher and student")
    made.add_argument("--methods", default="kd,fitnet,fgfi,reviewkd,dkd", help="rows of the paper detection")
    made.add_argument("--image-size", type=positive, default=320)
    made.add_argument("--batch-size", type=positive, default=2)
    made.add_argument("--turns", type=positive, default=5)
    made.add_argument("--evaluated", type=positive, default=5_000, help="images that are evaluated")
    made.add_argument("--device", default="cpu")
    found = made.parse_args()
    try:
        (found.pair,) = parse_pairs([found.pair], PAPER)
        check_networks(found.pair, found.pair.student, BUILT_IN["shapes"], PAPER.task)
        found.methods = [PAPER.row(name).name for name in found.methods.split(",")]
        found.device = choose_device(found.device)
        found.precision = choose("fp32", found.device)
    except BadRequest as error:
        made.error(str(error))
    return found


def main() -> None:
    asked = options()
    fix_threads()
    keep_freed_memory()  # as in training
    bench = Bench(asked.pair, asked.methods, asked.image_size, asked.batch_size, asked.precision)
    names = ("cohort", "solo", "plain", "teacher alone", "students alone")
    parts = dict(
        zip(names, (bench.cohort, bench.solo, bench.plain, bench.teacher_alone, bench.students_alone), strict=True)
    )
    by_turns(parts, 1)  # warms up
    wall, cpu = wall_and_cpu(by_turns(parts, asked.turns))
    for name in names:
        print(f"{name:16} {shown(wall[name], 3)} s, CPU {shown(cpu[name], 3)} s")
    count = len(bench.members)
    pairs = list(zip(cpu["teacher alone"], cpu["students alone"], strict=True))
    bound = [1.1 * (teacher + students) / (count * teacher + students) for teacher, students in pairs]
    found = {
        "cohort_over_solo": {"wall": ratios(wall["cohort"], wall["solo"]), "cpu": ratios(cpu["cohort"], cpu["solo"])},
        "cohort_over_plain": {
            "wall": ratios(wall["cohort"], wall["plain"]),
            "cpu": ratios(cpu["cohort"], cpu["plain"]),
        },
        "cpu_bound": bound,
    }
    print(f"cohort / solo: CPU {shown(found['cohort_over_solo']['cpu'])}, at most {shown(bound)}")
    print(f"cohort / plain: wall {shown(found['cohort_over_plain']['wall'])}")
    taken = evaluation(asked.evaluated)
    print(f"evaluation of {asked.evaluated} images of {CLASSES} classes: {taken:.1f} s")
    about = {"bench": "detection", "pair": str(asked.pair), "methods": asked.methods, "image_size": asked.image_size}
    measured_parts = {"seconds": wall, "cpu_seconds": cpu, **found, "evaluation_seconds": taken}
    print(json.dumps({**about, **circumstances(asked), **measured_parts}))


if __name__ == "__main__":
    main()
