"""What each distillation loss costs: time and peak extra memory of forward and backward, and share of the whole step.

Batch 64, CIFAR shapes, one thread as the engine computes on a CPU. Features are those of a real forward pass; a loss
is measured alone on copies of them, the whole step (teacher pass, student, all terms, optimiser) beside it by turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kdtable import papers
from kdtable.data.sets import ImageSet
from kdtable.data.spec import BUILT_IN
from kdtable.data.stream import Batch
from kdtable.methods import get
from kdtable.methods.base import Stage
from kdtable.models.outputs import Outputs
from kdtable.training.build import build_method, build_student, build_teacher, network_shapes
from kdtable.training.member import Member
from kdtable.training.numerics import fix_threads, place
from kdtable.training.precision import choose
from kdtable.training.task import Classification

CPU = torch.device("cpu")
SAMPLES, CLASSES = 5_000, 100
PAIRS = ("resnet32x4:resnet8x4", "cifar_resnet50:MobileNetV2")


def tensors(outputs: Outputs) -> list[Tensor]:
    values = [getattr(outputs, f.name) for f in fields(outputs) if f.name != "branches"]
    return [t for v in values for t in (v if isinstance(v, tuple) else (v,)) if isinstance(t, Tensor)]


def leaves(outputs: Outputs) -> Outputs:
    """Copies of a student's outputs that gradients end in."""

    def leaf(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(leaf, value))
        return None if value is None else value.detach().clone().requires_grad_()

    return Outputs(*(leaf(getattr(outputs, f.name)) for f in fields(outputs)))


def peak_memory(work: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator handed out at once during ``work``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    peak = held = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


class Contest:
    """One row on one pair."""

    def __init__(self, row: str, pair: papers.Pair, task: Classification, teacher: torch.nn.Module) -> None:
        paper, self.task, self.teacher = papers.load("crd"), task, teacher
        settings = paper.row(row)
        student = place(build_student(pair.student, task.images.spec, 1), CPU)
        method = build_method(
            row,
            recipe=paper.recipe_for(pair.student),
            terms=settings.terms,
            params=settings.params_for(pair.student),
            labels=task.images.train_labels,
            student=student,
            teacher=teacher,
            data=task.images.spec,
            seed=1,
            device=CPU,
            stage_epochs=settings.stages,
        )
        self.member = Member(row, student, method, task)

    def loss(self, stage: Stage, term: str, batch: Batch) -> tuple[Callable[[], None], int]:
        """The term's forward and backward, and the bytes of the features that it reads."""
        self.member.method.set_modes(stage, self.member.student)
        with torch.no_grad():
            taught = self.task.run(self.teacher, batch, stage.teacher_features)
            own = self.task.run(self.member.student, batch, stage.student_features)
        given = leaves(own)
        read = [given.logits, taught.logits] if term == "kd" else [t for o in (given, taught) for t in tensors(o)[1:]]

        def work() -> None:
            self.member.method.loss(term, given, taught, batch).backward()

        return work, sum(t.nbytes for t in read)

    def step(self, batch: Batch) -> None:
        with torch.no_grad():
            taught = self.task.run(self.teacher, batch, self.member.stage.teacher_features)
        self.member.step(batch, taught)


def measure(contest: Contest, batch: Batch, turns: int) -> list[dict[str, Any]]:
    found = []
    for stage in contest.member.stages:
        contest.member.begin_epoch()
        for term in (t.name for t in stage.terms if t.name != "ce" and (t.name != "kd" or len(stage.terms) == 2)):
            work, read = contest.loss(stage, term, batch)
            work()
            contest.member.optimizer.zero_grad(set_to_none=True)
            extra = peak_memory(work)
            times: dict[str, list[float]] = {"loss": [], "step": []}
            for _ in range(turns):
                for name, part in (("loss", work), ("step", lambda: contest.step(batch))):
                    started = time.perf_counter()
                    part()
                    times[name].append(1000 * (time.perf_counter() - started))
            loss, step = (statistics.median(values) for values in times.values())
            found.append(
                {
                    "row": contest.member.run_id,
                    "stage": stage.name,
                    "term": term,
                    "loss_ms": loss,
                    "step_ms": step,
                    "share": loss / step,
                    "read_mib": read / 2**20,
                    "peak_mib": extra / 2**20,
                    "peak_over_read": extra / max(read, 1),
                }
            )
        contest.member.advance()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", default="", help="comma-separated; by default all of the CRD paper's file")
    arguments = parser.parse_args()
    fix_threads()
    paper, spec = papers.load("crd"), BUILT_IN["cifar100"]
    images = torch.randint(0, 256, (SAMPLES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(SAMPLES) % CLASSES
    task = Classification(ImageSet(spec, images, labels, images, labels), paper.recipe, 1, choose("fp32", CPU))
    batch = next(task.batches("main", 1))
    for text in PAIRS:
        pair = papers.Pair(*text.split(":"))
        teacher = place(build_teacher(pair.teacher, CLASSES, spec.mean, spec.std), CPU)
        shapes = [network_shapes(name, CLASSES, 32) for name in (pair.student, pair.teacher)]
        table = Table(
            "row", "stage", "term", "loss ms", "step ms", "share", "reads MiB", "peak MiB", "peak/reads", title=text
        )
        rows = [name for name in (arguments.rows.split(",") if arguments.rows else paper.rows) if name != "vanilla"]
        for row in rows:
            if reason := get(row).inapplicable(*shapes):
                table.add_row(row, "", "", "N/A", "", "", "", "", reason)
                continue
            for record in measure(Contest(row, pair, task, teacher), batch, arguments.turns):
                values = [f"{record[k]:.1f}" for k in ("loss_ms", "step_ms")]
                sizes = [f"{record[k]:.1f}" for k in ("read_mib", "peak_mib", "peak_over_read")]
                table.add_row(row, record["stage"], record["term"], *values, f"{record['share']:.0%}", *sizes)
                print(json.dumps({"pair": text, **record}), flush=True)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
