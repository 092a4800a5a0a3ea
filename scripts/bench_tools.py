"""Shared tools of the benchmarks: networks on random images of CIFAR-100's shape, and timing."""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from kdtable import papers
from kdtable.data.sets import ImageSet
from kdtable.data.spec import BUILT_IN
from kdtable.errors import BadRequest
from kdtable.hardware import available_cores
from kdtable.methods import get
from kdtable.methods.objective import Objective
from kdtable.numerics.layout import THREADS, to_device
from kdtable.numerics.precision import Precision, choose, choose_device
from kdtable.papers import Pair
from kdtable.planning.selection import parse_pairs
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.classification import Classification
from kdtable.training.build import build_member, build_student, build_teacher, network_shapes
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.recording import WARM_UP
from kdtable.training.step import weighted_sum
from kdtable.training.teacher import FrozenTeacher

CLASSES = 100
#: CIFAR-100's number of training images, which sets the size of CRD's banks and scores.
SAMPLES = 50_000
PAIRS = ("resnet20:resnet8", "resnet56:resnet20", "resnet32x4:resnet8x4", "resnet32x4:ShuffleV1")
#: The thirteen methods of the CRD paper's tables.
ROWS = papers.find_table("crd-1")[1].rows
#: So low that nothing diverges on random images.
LR = 1e-6

#: Wall seconds, CPU seconds.
Spent = tuple[float, float]
Turns = dict[str, list[float]]


class Endless:
    """Stands before the class of a task, whose epoch then never ends."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # One stream for all measurements: in training, one epoch's random draws serve all its batches.
        self._endless = itertools.chain.from_iterable(map(partial(super().batches, "main"), itertools.count(1)))

    def batches(self, stage: str, epoch: int) -> Iterator[Any]:
        """The next batches; stage and epoch are ignored."""
        return iter(self.next_batch, None)

    def next_batch(self) -> Any:
        return next(self._endless)


class Excerpt(Endless, Classification):
    """Random images instead of CIFAR-100's."""

    def __init__(self, batch_size: int, precision: Precision, samples: int = SAMPLES) -> None:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (samples, 3, 32, 32), dtype=torch.uint8, generator=draw)
        labels = torch.arange(samples) % CLASSES
        self.recipe = replace(papers.load("crd").recipe, batch_size=batch_size, lr=LR)
        spec = BUILT_IN["cifar100"]
        super().__init__(ImageSet(spec, images, labels, images[:1], labels[:1]), self.recipe, 1, precision)


def random_teacher(
    name: str, task: Any, seen: Callable[[nn.Module, Any], object] = lambda network, batch: network(batch.images)
) -> nn.Module:
    """A frozen network with random weights. Its batch norms have seen a batch, else a deep one's features overflow.

    Args:
        name: of the network.
        task: an endless one.
        seen: passes a batch through the network.
    """
    spec = task.images.spec
    network = to_device(build_teacher(name, spec.num_classes, spec.mean, spec.std), task.device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # running statistics are then those of the one batch
    with torch.no_grad():
        seen(network.train(), task.next_batch())
    return network.eval()


def new_member(row: str, student: str, task: Excerpt, teacher: nn.Module | None) -> Member:
    """Build an untrained student with the settings of a row of the CRD paper."""
    spec = papers.load("crd").row(row)
    kind = get(row)
    objective = Objective.of(kind.hyper, spec.terms, spec.params_for(student), stage_epochs=spec.stages)
    network = build_student(student, task.images.spec, 1)
    return build_member(row, kind, objective, task.recipe, student=network, teacher=teacher, task=task)


def at_main_stage(member: Member) -> Member:
    """Move a member to its main stage without training the early stages."""
    while member.stage.name != "main":
        member.advance()
    return member


def inapplicable(rows: Sequence[str], pair: Pair) -> dict[str, str]:
    """The rows that cannot be run on a pair, and why."""
    shapes = [network_shapes(name, CLASSES, 32) for name in (pair.student, pair.teacher)]
    reasons = {row: get(row).inapplicable(*shapes) for row in rows}
    return {row: reason for row, reason in reasons.items() if reason}


class Bench:
    """A teacher, and one student at its main stage for each row that can be run on the pair."""

    def __init__(self, pair: Pair, rows: Sequence[str], batch_size: int, precision: Precision) -> None:
        self.left_out = inapplicable(rows, pair)
        self.rows = [row for row in rows if row not in self.left_out]
        if not self.rows:
            raise SystemExit(f"{pair} has nothing to be measured: {next(iter(self.left_out.values()))}")
        self.task = Excerpt(batch_size, precision)
        network = random_teacher(pair.teacher, self.task)
        self.teacher = FrozenTeacher(network, self.task)
        self.members = [at_main_stage(new_member(row, pair.student, self.task, network)) for row in self.rows]


class Enough(Exception):
    """Raised to end a cohort's endless epoch."""


def clocks() -> Spent:
    """Wall time, and CPU time of all threads of the process, which other processes do not lengthen."""
    return time.perf_counter(), time.process_time()


class Stopwatch:
    """A cohort's sink that takes a reading after the warm-up steps and another ``steps`` steps later.

    The first step allocates memory that later ones reuse; on a CUDA device, steps are recorded before they replay.
    """

    def __init__(self, device: torch.device, steps: int, read: Callable[[], Any] = clocks) -> None:
        self._device = device
        self._read = read
        self._first = 1 if device.type == "cpu" else WARM_UP + 2
        self._last = self._first + steps
        self._count = 0
        self.readings: list[Any] = []

    def stepped(self, members: Sequence[Member], images: int) -> None:
        self._count += 1
        if self._count in (self._first, self._last):
            synchronize(self._device)
            self.readings.append(self._read())
        if self._count == self._last:
            raise Enough

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        raise AssertionError("an endless epoch ended")

    def failed(self, member: Member, error: BaseException) -> None:
        raise error  # else the figures would count fewer students than stated


def cohort_step(task: Any, teacher: FrozenTeacher, members: Sequence[Member]) -> Spent:
    """Wall and CPU seconds of a step of a cohort."""
    watch = Stopwatch(task.device, steps=1)
    with suppress(Enough):
        Cohort(task, teacher, members, watch).train()
    (wall, cpu), (wall_after, cpu_after) = watch.readings
    return wall_after - wall, cpu_after - cpu


def own_work(member: Member, batch: Any, teacher_outputs: Any) -> None:
    """Make a student's step without its bookkeeping."""
    learner = member.learner
    losses = learner.losses(learner.forward(batch), teacher_outputs, batch)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.backward(weighted_sum(losses, learner.stage))
    learner.update()


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def spent(work: Callable[[], object], device: torch.device, times: int = 1) -> Spent:
    """Mean wall and CPU seconds of ``work`` over ``times`` repetitions."""
    synchronize(device)
    wall, cpu = clocks()
    for _ in range(times):
        work()
    synchronize(device)
    wall_after, cpu_after = clocks()
    return (wall_after - wall) / times, (cpu_after - cpu) / times


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of ``work``."""
    return spent(work, device)[0]


def total(parts: Sequence[Spent]) -> Spent:
    return sum(wall for wall, _ in parts), sum(cpu for _, cpu in parts)


def wall_and_cpu(turns: Mapping[str, Sequence[Spent]]) -> tuple[Turns, Turns]:
    """Separate wall from CPU seconds."""
    wall, cpu = ({name: [pair[kind] for pair in pairs] for name, pairs in turns.items()} for kind in (0, 1))
    return wall, cpu


def by_turns(parts: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[Any]]:
    """Measure the parts in the order A B A B, so that other load on the machine affects all of them alike."""
    found: dict[str, list[Any]] = {name: [] for name in parts}
    for _ in range(turns):
        for name, part in parts.items():
            found[name].append(part())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios turn by turn."""
    return [a / b for a, b in zip(above, below, strict=True)]


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Median, minimum and maximum as text."""
    middle, least, most = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def positive(text: str) -> int:
    """Parse a positive whole number of the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def parser(description: str | None, turns: int) -> argparse.ArgumentParser:
    """Make the option parser of a benchmark of cohorts."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pairs", default=",".join(PAIRS), help="TEACHER:STUDENT, comma-separated (%(default)s)")
    made.add_argument("--methods", default=",".join(ROWS), help="rows of the CRD paper, comma-separated (%(default)s)")
    made.add_argument("--batch-size", type=positive, default=64, help="(%(default)s)")
    made.add_argument("--device", default="cpu", help="as kdtable run has it (%(default)s)")
    made.add_argument("--precision", default="fp32", help="as kdtable run has it (%(default)s)")
    made.add_argument("--turns", type=positive, default=turns, help="measurements of each part (%(default)s)")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the options of :func:`parser` into pairs, rows, a torch device and a precision on it."""
    options = made.parse_args()
    paper = papers.load("crd")
    try:
        options.pairs = parse_pairs(options.pairs.split(","), paper)
        options.methods = list(dict.fromkeys(paper.row(name).name for name in options.methods.split(",")))
        options.device = choose_device(options.device)
        options.precision = choose(options.precision, options.device)
    except BadRequest as error:
        made.error(str(error))
    return options


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """The conditions common to all figures of a benchmark."""
    return {
        "device": options.device.type,
        "precision": options.precision.name,
        "batch_size": options.batch_size,
        "threads_per_network": THREADS,
        "cores": available_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }
