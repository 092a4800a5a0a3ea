"""Measure each distillation loss: time and peak extra memory of forward and backward, and its fraction of a step.

Batch 64, CIFAR shapes, one thread as in training on a CPU. Features come from a real forward pass. A loss is measured
alone on copies of them; the whole step (teacher pass, student, all terms, optimiser) alternates with it.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from bench_tools import Excerpt, by_turns, inapplicable, new_member, random_teacher, seconds
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kdtable import papers
from kdtable.data.stream import Batch
from kdtable.methods.base import Stage
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import fix_threads, keep_freed_memory
from kdtable.numerics.precision import choose
from kdtable.training.teacher import FrozenTeacher

CPU = torch.device("cpu")
SAMPLES = 5_000
PAIRS = ("resnet32x4:resnet8x4", "cifar_resnet50:MobileNetV2")


def tensors(outputs: Outputs) -> list[Tensor]:
    values = [getattr(outputs, f.name) for f in fields(outputs) if f.name != "branches"]
    return [t for v in values for t in (v if isinstance(v, tuple) else (v,)) if isinstance(t, Tensor)]


def leaves(outputs: Outputs) -> Outputs:
    """Copies of a student's outputs as leaves that collect gradients."""

    def leaf(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(leaf, value))
        return None if value is None else value.detach().clone().requires_grad_()

    return Outputs(*(leaf(getattr(outputs, f.name)) for f in fields(outputs)))


def peak_memory(work: Callable[[], object]) -> int:
    """Peak bytes of torch's CPU allocator during ``work``."""
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

    def __init__(self, row: str, student: str, task: Excerpt, teacher: FrozenTeacher) -> None:
        self.task, self.teacher = task, teacher
        self.member = new_member(row, student, task, teacher.network)

    def loss(self, stage: Stage, term: str, batch: Batch) -> tuple[Callable[[], None], int]:
        """The term's forward and backward pass, and the bytes of the features that it reads."""
        self.member.method.set_modes(stage, self.member.student)
        teacher_outputs = self.teacher.outputs(batch, stage.teacher_features)
        with torch.no_grad():
            own = self.task.forward(self.member.student, batch, stage.student_features)
        given = leaves(own)
        read = (
            [given.logits, teacher_outputs.logits]
            if term == "kd"
            else [t for o in (given, teacher_outputs) for t in tensors(o)[1:]]
        )

        def work() -> None:
            self.member.method.loss(term, given, teacher_outputs, batch).backward()

        return work, sum(t.nbytes for t in read)

    def step(self, batch: Batch) -> None:
        self.member.step(batch, self.teacher.outputs(batch, self.member.stage.teacher_features))


def measure(contest: Contest, batch: Batch, turns: int) -> list[dict[str, Any]]:
    found = []
    for stage in contest.member.stages:
        contest.member.begin_epoch()
        for term in (t.name for t in stage.terms if t.name != "ce" and (t.name != "kd" or len(stage.terms) == 2)):
            work, read = contest.loss(stage, term, batch)
            work()
            contest.member.optimizer.zero_grad(set_to_none=True)
            extra = peak_memory(work)
            parts = {"loss": work, "step": partial(contest.step, batch)}
            times = by_turns({name: partial(seconds, part, CPU) for name, part in parts.items()}, turns)
            loss, step = (1000 * statistics.median(values) for values in times.values())
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
    parser.add_argument(
        "--rows", default="", help="comma-separated; by default all of the CRD benchmark's and of the zoo's files"
    )
    arguments = parser.parse_args()
    fix_threads()
    keep_freed_memory()  # as in training
    known, task = {**papers.load("crd").rows, **papers.load("zoo").rows}, Excerpt(64, choose("fp32", CPU), SAMPLES)
    batch = task.next_batch()
    for text in PAIRS:
        pair = papers.Pair(*text.split(":"))
        teacher = FrozenTeacher(random_teacher(pair.teacher, task), task)
        table = Table(
            "row", "stage", "term", "loss ms", "step ms", "share", "reads MiB", "peak MiB", "peak/reads", title=text
        )
        rows = [name for name in (arguments.rows.split(",") if arguments.rows else known) if name != "vanilla"]
        left_out = inapplicable(rows, pair)
        for row in rows:
            if row in left_out:
                table.add_row(row, "", "", "N/A", "", "", "", "", left_out[row])
                continue
            for record in measure(Contest(row, pair.student, task, teacher), batch, arguments.turns):
                values = [f"{record[k]:.1f}" for k in ("loss_ms", "step_ms")]
                sizes = [f"{record[k]:.1f}" for k in ("read_mib", "peak_mib", "peak_over_read")]
                table.add_row(row, record["stage"], record["term"], *values, f"{record['share']:.0%}", *sizes)
                print(json.dumps({"pair": text, **record}), flush=True)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
