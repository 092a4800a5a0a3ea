"""Two real processes that train members together, and what one process makes of the same."""

import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kdtable.data.stream import Batch
from kdtable.models.outputs import Outputs
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.numerics import fix_threads
from kdtable.training.precision import Precision
from kdtable.training.task import Classification
from kdtable.training.teacher import FrozenTeacher
from kdtable.world import ALONE, World
from tests import engine

SIZE = 2

#: Done by every process with its world; what it returns is kept.
Work = Callable[[World], Any]


class Exactly(Classification):
    """Everything in float64, in which shares of a batch add up to the batch but for the last digits."""

    def run(self, network: nn.Module, batch: Batch, keep: frozenset[str]) -> Outputs:
        outputs: Outputs = network(batch.images.double(), keep)
        return outputs


def together(work: Work, folder: Path) -> list[Any]:
    """What each of two processes returns."""
    context = get_context("spawn")
    processes = [context.Process(target=_rank, args=(rank, work, folder)) for rank in range(SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * SIZE
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


def _rank(rank: int, work: Work, folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    fix_threads()
    store = dist.FileStore(str(folder / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE)
    torch.save(work(World(rank, SIZE)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def exact_task(world: World) -> Exactly:
    return Exactly(engine.image_set(), engine.RECIPE, 1, Precision("fp32", engine.CPU), world)


def members(rows: list[str], task: Classification, teacher: nn.Module) -> list[Member]:
    """Members in float64 whose batch norms always use their running statistics."""
    found = []
    for row in rows:
        # A teacher in train mode has batch statistics too.
        own = {"teacher_mode": "eval"} if "teacher_mode" in engine.settings_of(row).params else {}
        member = engine.member(row, task, teacher, **own)
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
            replace(stage, recipe=replace(stage.recipe, lr=1e-5, epochs=2)) for stage in member.stages
        )
        member._begin_stage()
        found.append(member)
    return found


def trained(rows: list[str], world: World = ALONE) -> dict[str, dict[str, Any]]:
    """The state of each row's member after all epochs of a cohort; a failure stands in its member's place."""
    task, teacher = exact_task(world), engine.teacher("resnet14").double()
    sink = engine.Sink()
    cohort = members(rows, task, teacher)
    Cohort(task, FrozenTeacher(teacher, task), cohort, sink).train()
    states = {member.run_id: member.state() for member in cohort}
    return {run_id: sink.failures.get(run_id) or state for run_id, state in states.items()}
