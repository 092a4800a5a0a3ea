"""Split the time of a training step into parts, and compare our student's step with a plain PyTorch loop.

Split: a cohort of the CRD paper's methods at their main stages, on one worker thread, so that the parts add up to the
whole. Backward passes include those of the losses; `scripts/bench losses` measures each loss with its own. Bookkeeping
is the rest: sums on the device, futures, scheduling. Unlike in training on CUDA devices, steps are not recorded,
because a recorded step has no parts.

Comparison: the step of one student on cross-entropy alone, on the same batch, on one thread. Ours (channels-last,
foreach SGD, sums on the device, freed memory kept) and the plain loop (contiguous, default torch.optim.SGD, loss and
hits read by `.item()` in each step) alternate, each in its own process: keeping freed memory is a setting of the
process, and the plain loop uses the C library's default.

CPU time is that of all threads; on a busy machine it is more reliable than wall time. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

import torch
from bench_tools import (
    LR,
    Bench,
    Enough,
    Excerpt,
    Spent,
    Stopwatch,
    Turns,
    by_turns,
    circumstances,
    new_member,
    parse,
    parser,
    ratios,
    shown,
    spent,
    synchronize,
    wall_and_cpu,
)
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from kdtable.numerics.layout import fix_threads, keep_freed_memory
from kdtable.numerics.precision import choose
from kdtable.papers import Pair
from kdtable.training.build import build_student
from kdtable.training.cohort import Cohort

SPLIT_STEPS = 2  # of the cohort in each turn
COMPARED_STEPS = 10  # of each student in each turn
PARTS = ("data", "teacher", "forward", "loss", "backward", "optimiser", "bookkeeping", "step")

Times = dict[str, float]
#: Student, images in a batch, device.
Case = tuple[str, int, torch.device]


class Probe:
    """Adds up wall and CPU time of named parts, which must not overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wall: Counter[str] = Counter()
        self._cpu: Counter[str] = Counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        synchronize(self._device)
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        synchronize(self._device)
        self._wall[name] += time.perf_counter() - wall
        self._cpu[name] += time.thread_time() - cpu

    def watch(self, owner: object, method: str, name: Callable[..., str]) -> None:
        """Count each call of ``owner.method`` as a part; ``name`` makes its name from the arguments."""
        work = getattr(owner, method)

        def watched(*arguments: Any) -> Any:
            with self.part(name(*arguments)):
                return work(*arguments)

        setattr(owner, method, watched)

    def read(self) -> tuple[Times, Times]:
        """Wall and CPU seconds of each part so far; "step" is the whole process."""
        wall, cpu = dict(self._wall), dict(self._cpu)
        return wall | {"step": time.perf_counter()}, cpu | {"step": time.process_time()}


def watch_parts(probe: Probe, bench: Bench) -> None:
    probe.watch(bench.task, "next_batch", lambda: "data")
    probe.watch(bench.teacher, "outputs", lambda *_: "teacher")
    for member in bench.members:
        probe.watch(member.learner, "forward", lambda _: "forward")
        probe.watch(member.learner, "loss", lambda name, *_: f"loss {name}")
        probe.watch(member.learner, "backward", lambda _: "backward")
        probe.watch(member.learner, "update", lambda: "optimiser")


def split(bench: Bench, probe: Probe) -> tuple[Times, Times]:
    """Wall and CPU seconds of each part of a step."""
    watch = Stopwatch(bench.task.device, SPLIT_STEPS, probe.read)
    cohort = Cohort(bench.task, bench.teacher, bench.members, watch, workers=1)
    with suppress(Enough):
        cohort.train()
    (wall, cpu), (wall_after, cpu_after) = watch.readings
    return per_step(wall, wall_after), per_step(cpu, cpu_after)


def per_step(before: Times, after: Times) -> Times:
    taken = {part: (value - before[part]) / SPLIT_STEPS for part, value in after.items()}
    named = sum(value for part, value in taken.items() if part != "step")
    return taken | {"bookkeeping": taken["step"] - named}


def split_figures(pair: Pair, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each part, as means over all steps, so that they add up to those of the step."""
    bench = Bench(pair, options.methods, options.batch_size, options.precision)
    probe = Probe(options.device)
    watch_parts(probe, bench)
    walls, cpus = zip(*(split(bench, probe) for _ in range(options.turns)), strict=True)
    return {
        "pair": str(pair),
        "methods": bench.rows,
        "left_out": bench.left_out,
        "step_wall_ms": [1000 * wall["step"] for wall in walls],
        "wall_ms": mean_milliseconds(walls),
        "cpu_ms": mean_milliseconds(cpus),
    }


def mean_milliseconds(turns: Sequence[Times]) -> Times:
    parts = sorted(turns[0], key=lambda part: (PARTS.index(part.partition(" ")[0]), part))
    return {part: 1000 * statistics.mean(times[part] for times in turns) for part in parts}


def show_split(record: dict[str, Any], console: Console) -> None:
    wall, cpu = record["wall_ms"], record["cpu_ms"]
    table = Table("part", title=f"{record['pair']}: a step of {len(record['methods'])} students on one worker")
    for header in ("wall ms", "share", "CPU ms", "share"):
        table.add_column(header, justify="right")
    for part in wall:
        figures = [(times[part], times[part] / times["step"]) for times in (wall, cpu)]
        table.add_row(part, *(text for value, share in figures for text in (f"{value:,.1f}", f"{share:.1%}")))
    console.print(table)
    for row, reason in record["left_out"].items():
        console.print(f"without {row}: {reason}")
    console.print(f"step: {shown(record['step_wall_ms'], 0)} ms\n")


@lru_cache
def ours(precision: str, case: Case) -> Callable[[], object]:
    """Make a step of kdtable's student on one batch."""
    keep_freed_memory()
    student, batch_size, device = case
    task = Excerpt(batch_size, choose(precision, device), samples=batch_size)
    member = new_member("vanilla", student, task, None)
    member.begin_epoch()
    batch = task.next_batch()
    return lambda: member.step(batch, None)


@lru_cache
def plain(precision: str, case: Case) -> Callable[[], object]:
    """Make the same step on the same batch as a short script would."""
    student, batch_size, device = case
    task = Excerpt(batch_size, choose(precision, device), samples=batch_size)
    batch = task.next_batch()
    images, labels = batch.images.contiguous(), batch.labels
    network = build_student(student, task.images.spec, 1).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    sums = {"loss": 0.0, "hits": 0}

    def step() -> None:
        with task.precision.autocast():
            logits = network(images, keep=frozenset()).logits
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sums["loss"] += loss.item()
        sums["hits"] += (logits.argmax(dim=1) == labels).sum().item()

    return step


def step_seconds(loop: Callable[..., Callable[[], object]], precision: str, case: Case) -> Spent:
    """Wall and CPU seconds of a step, in a process for one kind of loop."""
    fix_threads()
    step = loop(precision, case)
    step()  # warms up: the first step allocates memory that later ones reuse
    return spent(step, case[2], COMPARED_STEPS)


def ask(process: ProcessPoolExecutor, *arguments: Any) -> Spent:
    return process.submit(step_seconds, *arguments).result()


def comparison(student: str, options: argparse.Namespace) -> dict[str, Any]:
    """Wall and CPU seconds of a student's step in each kind of loop, and the ratios of each turn."""
    case = (student, options.batch_size, options.device)
    precision = options.precision.name
    loops = {"ours": (ours, precision), "plain": (plain, precision)}
    with_bf16 = precision == "fp32" and native_bf16(options.device)
    if with_bf16:
        loops["ours in bf16"] = (ours, "bf16")
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        parts = {}
        for name, loop in loops.items():
            process = stack.enter_context(ProcessPoolExecutor(1, context))
            parts[name] = partial(ask, process, *loop, case)
        turns = by_turns(parts, options.turns)
    wall, cpu = map(loop_figures, wall_and_cpu(turns))
    return {"student": student, "wall": wall, "cpu": cpu}


def loop_figures(times: Turns) -> dict[str, Any]:
    found = {"seconds": times, "plain_over_ours": ratios(times["plain"], times["ours"])}
    if "ours in bf16" in times:
        found["fp32_over_bf16"] = ratios(times["ours"], times["ours in bf16"])
    return found


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 numbers natively; elsewhere they are converted, which gains nothing."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def show_comparisons(records: list[dict[str, Any]], options: argparse.Namespace, console: Console) -> None:
    table = Table("student", "loop", title="A student's step on cross-entropy, on one thread")
    for header in ("wall ms", "CPU ms", "", "wall", "CPU"):
        table.add_column(header, justify="right")
    ratio = {"plain": ("plain / ours", "plain_over_ours"), "ours in bf16": ("fp32 / bf16", "fp32_over_bf16")}
    for record in records:
        kinds = record["wall"], record["cpu"]
        for loop in record["wall"]["seconds"]:
            name, key = ratio.get(loop, ("", ""))
            times = [f"{1000 * statistics.median(kind['seconds'][loop]):,.1f}" for kind in kinds]
            table.add_row(record["student"], loop, *times, name, *(shown(kind[key]) for kind in kinds if key))
    console.print(table)
    if options.precision.name == "fp32" and not native_bf16(options.device):
        console.print("bf16 is not measured: this device has no arithmetic of its own for it")


def main() -> None:
    options = parse(parser(__doc__, turns=5))
    fix_threads()
    console = Console(width=120, highlight=False)
    console.print(
        f"batch {options.batch_size}, {options.precision.name}, {options.turns} turns: median (least to most)"
    )
    splits = []
    for pair in options.pairs:
        splits.append(split_figures(pair, options))
        show_split(splits[-1], console)
    students = dict.fromkeys(pair.student for pair in options.pairs)
    comparisons = [comparison(student, options) for student in students]
    show_comparisons(comparisons, options, console)
    print(json.dumps({"bench": "step", **circumstances(options), "splits": splits, "comparisons": comparisons}))


if __name__ == "__main__":
    main()
