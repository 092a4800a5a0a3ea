"""Two real processes that train members together, and what one process makes of the same."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kdtable.data.stream import Batch
from kdtable.data.validation import hold_out
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import fix_threads
from kdtable.numerics.precision import Precision
from kdtable.tasks.classification import Classification
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import engine

SIZE = 2

#: Far above what anything here takes, so that a process that waits without end is a failure.
PATIENCE = timedelta(minutes=3)

#: Done by every process with its world; what it returns is kept.
Work = Callable[[Ranks], Any]

#: Rows of the tests' own, each another row with settings.
OWN: dict[str, tuple[str, dict[str, object]]] = {"mgd, random": ("mgd", {"reducer": "rd"})}


class Exactly(Classification):
    """Everything in float64, in which shares of a batch add up to the batch but for the last digits."""

    def forward(self, network: nn.Module, batch: Batch, keep: frozenset[str]) -> Outputs:
        views = {name: getattr(batch, name).double() for name in ("images", "strong") if hasattr(batch, name)}
        return self.apply(network, replace(batch, **views), keep)


def together(works: Sequence[Work], folder: Path) -> dict[str, list[Any]]:
    """What each of two processes returns, by the name of the work.

    They do one after the other: to start them takes longer than what they do.
    """
    context = get_context("spawn")
    processes = [context.Process(target=_rank, args=(rank, works, folder)) for rank in range(SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE.total_seconds())
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * SIZE
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]
    return {name: [results[name] for results in found] for name in found[0]}


def _rank(rank: int, works: Sequence[Work], folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    fix_threads()
    store = dist.FileStore(str(folder / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE, timeout=PATIENCE)
    torch.save({work.__name__: work(Ranks(rank, SIZE)) for work in works}, folder / f"{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


#: Later fields of the recipe; RandAugment, since what it does is known only where images are made.
LATER: dict[str, Any] = {
    "optimizer": "adamw",
    "label_smoothing": 0.1,
    "mixup": 0.4,
    "cutmix": 1.0,
    "randaugment": 1,
    "ema": 0.9,
}


#: Two views of each image.
VIEWS: dict[str, Any] = {"views": "weak-strong", "randaugment": 2, "randaugment_magnitude": 10}


def exact_task(ranks: Ranks, held_out: int = 0, **changed: Any) -> Exactly:
    """Small images, of which the last of three batches has nine."""
    images, recipe = engine.image_set(train=41 + held_out, test=9, size=8), replace(engine.RECIPE, **changed)
    if held_out:
        images = replace(images, spec=hold_out(images.spec, held_out)).held_out()
    return Exactly(images, recipe, 1, Precision("fp32", engine.CPU), ranks)


def exact_teacher() -> nn.Module:
    return engine.teacher("resnet14").double()


def members(
    rows: Sequence[str], task: Classification, teacher: nn.Module, epochs: int = 1, **changed: Any
) -> list[Member]:
    """Members in float64, named by their rows, whose batch norms always use their running statistics."""
    found = []
    for name in rows:
        row, own = OWN.get(name, (name, {}))
        # A teacher in train mode has batch statistics too.
        own = own | ({"teacher_mode": "eval"} if "teacher_mode" in engine.settings_of(row).params else {})
        member = engine.member(row, task, teacher, **own)
        member.run_id = name
        member.student.double()
        member.method.double()
        set_modes = member.method.set_modes

        def without_statistics(stage: Any, student: nn.Module, member: Member = member, own: Any = set_modes) -> None:
            own(stage, student)
            for module in (*student.modules(), *member.method.modules()):
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.eval()

        member.method.set_modes = without_statistics  # type: ignore[method-assign]
        # Without batch statistics nothing keeps a student from diverging at the usual rate.
        member.stages = tuple(
            replace(stage, recipe=replace(stage.recipe, lr=1e-5, epochs=epochs, **changed)) for stage in member.stages
        )
        member._begin_stage()
        found.append(member)
    return found


def run(
    rows: Sequence[str],
    ranks: Ranks = SINGLE_PROCESS,
    *,
    epochs: int = 1,
    after: Mapping[str, dict[str, Any]] | None = None,
    change: Callable[[list[Member]], None] | None = None,
    held_out: int = 0,
    **changed: Any,
) -> tuple[engine.Sink, list[Member]]:
    """What a cohort of these rows tells of itself, and its members at the end.

    Args:
        rows: of its members.
        world: of this process.
        epochs: of each stage.
        after: states that members go on from.
        change: makes them fail.
        held_out: number of images held out for validation.
        changed: fields of the recipe.
    """
    task, teacher, sink = exact_task(ranks, held_out, **changed), exact_teacher(), engine.Sink()
    cohort = members(rows, task, teacher, epochs, **changed)
    for member in cohort:
        if after:
            member.load_state(after[member.run_id])
    if change:
        change(cohort)
    Cohort(task, FrozenTeacher(teacher, task), cohort, sink).train()
    return sink, cohort


def trained(rows: Sequence[str], ranks: Ranks = SINGLE_PROCESS, **changed: Any) -> dict[str, dict[str, Any]]:
    """The state of each row's member after all epochs of a cohort; a failure stands in its member's place."""
    sink, cohort = run(rows, ranks, **changed)
    return {member.run_id: sink.failures.get(member.run_id) or member.state() for member in cohort}
