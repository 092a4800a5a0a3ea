"""Time many students beside one teacher pass: throughput of solo runs and of cohorts, and its limits.

Every cohort size trains the same students, so cohorts of 1 are solo runs, one after another. All use the machine's
cores as `kdtable run` does. Other parts alternate with them in one process:

- alone: a teacher pass, and each student's forward pass, losses, backward pass and optimiser, one after another on one
  thread. Divided by the workers, it is the time of a cohort whose workers never wait or slow each other down. CPU time,
  which does not include waiting, separates the two.
- matmul, conv: the rate of large matrix products and of wide convolutions in the same precision, one thread per
  worker, to compare with the rate in a step (teacher and all students, forward and backward). Both are measured,
  because a CPU's matrix products and convolutions may differ in speed.

Peak memory is that of a separate process that trains the largest cohort on 50,000 images. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from bench_tools import (
    Bench,
    Spent,
    Turns,
    by_turns,
    circumstances,
    cohort_step,
    own_work,
    parse,
    parser,
    positive,
    ratios,
    seconds,
    shown,
    spent,
    total,
    wall_and_cpu,
)
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from kdtable.data.stream import Batch
from kdtable.hardware import available_cores
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import LAYOUT, fix_threads
from kdtable.numerics.precision import Precision, choose
from kdtable.papers import Pair

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Group(Bench):
    """The measurements of a pair."""

    def step_in_cohorts(self, size: int) -> Spent:
        """Wall and CPU seconds of a step of every student, in cohorts of ``size``."""
        groups = [self.members[start : start + size] for start in range(0, len(self.members), size)]
        return total([cohort_step(self.task, self.teacher, group) for group in groups])

    def teacher_pass(self, batch: Batch) -> Outputs:
        needs = frozenset[str]().union(*(member.stage.teacher_features for member in self.members))
        return self.teacher.outputs(batch, needs)

    def teacher_alone(self) -> Spent:
        return spent(partial(self.teacher_pass, self.task.next_batch()), self.task.device)

    def students_alone(self) -> Spent:
        batch = self.task.next_batch()
        teacher_outputs = self.teacher_pass(batch)
        return total(
            [spent(partial(own_work, member, batch, teacher_outputs), self.task.device) for member in self.members]
        )

    def operations(self) -> int:
        """Floating-point operations of matrix products and convolutions in a step of teacher and students."""
        with FlopCounterMode(display=False) as counter:
            batch = self.task.next_batch()
            teacher_outputs = self.teacher_pass(batch)
            for member in self.members:
                own_work(member, batch, teacher_outputs)
        return counter.get_total_flops()


def matmul(precision: Precision) -> tuple[Callable[[], object], int]:
    """A product of square matrices, and its floating-point operations."""
    size = 1024 if precision.device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=precision.device).to(DTYPES[precision.name])
    return lambda: torch.mm(a, b), 2 * size**3


def convolution(precision: Precision) -> tuple[Callable[[], object], int]:
    """A 3 x 3 convolution of 256 channels at CIFAR's size, and its floating-point operations."""
    images, channels, size = 4 if precision.device.type == "cpu" else 256, 256, 32
    where = {"device": precision.device, "dtype": DTYPES[precision.name], "memory_format": LAYOUT}
    x, w = torch.randn(images, channels, size, size).to(**where), torch.randn(channels, channels, 3, 3).to(**where)
    return lambda: torch.conv2d(x, w, padding=1), 2 * images * (channels * 3 * size) ** 2


def rate(work: Callable[[], object], operations: int, device: torch.device, workers: int) -> float:
    """Operations per second while ``workers`` threads do the same work at once."""
    times = 20

    def many() -> None:
        for _ in range(times):
            work()

    with ThreadPoolExecutor(workers, initializer=fix_threads) as pool:
        pool.submit(work).result()  # warms up

        def all_at_once() -> None:
            for job in [pool.submit(many) for _ in range(workers)]:
                job.result()

        return workers * times * operations / seconds(all_at_once, device)


def peak_memory(pair: Pair, rows: Sequence[str], batch_size: int, precision: str, device: torch.device) -> int:
    """Peak bytes of this process (of torch, on a CUDA device) after steps of a cohort of all rows."""
    Group(pair, rows, batch_size, choose(precision, device)).step_in_cohorts(len(rows))
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else resident_peak()


def resident_peak() -> int:
    """Peak bytes of resident memory of this process."""
    if sys.platform == "linux":  # getrusage there also counts the process that started this one
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_process_of_its_own(work: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def measure(pair: Pair, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a pair. Lists have a number for each turn: seconds, or the unit in their name."""
    group = Group(pair, options.methods, options.batch_size, options.precision)
    rows = group.rows
    workers = available_cores() if options.device.type == "cpu" else 1
    sizes = sorted({min(size, len(rows)) for size in options.cohorts})
    parts = {f"cohorts of {size}": partial(group.step_in_cohorts, size) for size in sizes}
    parts |= {"teacher alone": group.teacher_alone, "students alone": group.students_alone}
    for name, make in (("matmul", matmul), ("conv", convolution)):
        parts[name] = partial(rate, *make(options.precision), options.device, workers)
    turns = by_turns(parts, options.turns)
    rates = {name: turns.pop(name) for name in ("matmul", "conv")}
    wall, cpu = wall_and_cpu(turns)
    walls, cpus = ({size: times[f"cohorts of {size}"] for size in sizes} for times in (wall, cpu))
    operations, largest = group.operations(), f"cohorts of {sizes[-1]}"
    over_alone = ratios(wall[largest], alone(wall))
    return {
        "pair": str(pair),
        "methods": rows,
        "left_out": group.left_out,
        "workers": workers,
        "seconds": wall,
        "cpu_seconds": cpu,
        "students_images_per_second": {n: [len(rows) * options.batch_size / s for s in walls[n]] for n in sizes},
        "ratio_to_smallest": {size: ratios(walls[size], walls[sizes[0]]) for size in sizes},
        "cpu_ratio_to_smallest": {size: ratios(cpus[size], cpus[sizes[0]]) for size in sizes},
        "ratio_to_alone": over_alone,
        "ratio_to_alone_per_worker": [workers * ratio for ratio in over_alone],
        "cpu_ratio_to_alone": ratios(cpu[largest], alone(cpu)),
        "flop_per_step": operations,
        "flop_per_second": [operations / value for value in wall[largest]],
        "machine_flop_per_second": rates,
        "peak_bytes": in_process_of_its_own(
            peak_memory, pair, rows, options.batch_size, options.precision.name, options.device
        ),
    }


def alone(turns: Turns) -> list[float]:
    return [teacher + own for teacher, own in zip(turns["teacher alone"], turns["students alone"], strict=True)]


def show(record: dict[str, Any], console: Console) -> None:
    students, workers, wall, cpu = (record[name] for name in ("methods", "workers", "seconds", "cpu_seconds"))
    sizes = list(record["ratio_to_smallest"])
    table = Table(title=f"{record['pair']}: a step of {len(students)} students")
    for header in ("", "wall ms", "CPU ms", "students x images/s", f"wall of cohorts of {sizes[0]}", "CPU of them"):
        table.add_column(header, justify="right" if header else "left")
    for size in sizes:
        name, rate = f"cohorts of {size}", record["students_images_per_second"][size]
        ratio = [shown(record[key][size]) for key in ("ratio_to_smallest", "cpu_ratio_to_smallest")]
        table.add_row(name, milliseconds(wall[name]), milliseconds(cpu[name]), shown(rate, 0), *ratio)
    for name in ("teacher alone", "students alone"):
        table.add_row(name, milliseconds(wall[name]), milliseconds(cpu[name]))
    console.print(table)
    for row, reason in record["left_out"].items():
        console.print(f"{row} is left out: {reason}")
    console.print(
        f"largest cohort: {shown(record['ratio_to_alone_per_worker'])} of alone / {workers} workers, undivided "
        f"{shown(record['ratio_to_alone'])}; CPU time {shown(record['cpu_ratio_to_alone'])} of alone"
    )
    achieved = statistics.median(record["flop_per_second"]) / 1e9
    console.print(f"its products: {record['flop_per_step'] / 1e9:,.0f} GFLOP a step, {achieved:,.0f} GFLOP/s")
    for name, values in record["machine_flop_per_second"].items():
        possible = statistics.median(values) / 1e9
        console.print(
            f"{name} on {workers} x one thread: {possible:,.0f} GFLOP/s, so the cohort has {achieved / possible:.0%}"
        )
    console.print(f"peak memory of the largest cohort: {record['peak_bytes'] / 2**30:.2f} GiB\n")


def milliseconds(values: Sequence[float]) -> str:
    return shown([1000 * value for value in values], 0)


def counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def main() -> None:
    made = parser(__doc__, turns=3)
    made.add_argument("--cohorts", type=counts, default="1,4,13", help="sizes, comma-separated (%(default)s)")
    options = parse(made)
    fix_threads()
    console = Console(width=150, highlight=False)
    console.print(
        f"batch {options.batch_size}, {options.precision.name}, median (least to most) of {options.turns} turns"
    )
    records = []
    for pair in options.pairs:
        records.append(measure(pair, options))
        show(records[-1], console)
    print(json.dumps({"bench": "grid", **circumstances(options), "pairs": records}))


if __name__ == "__main__":
    main()
