"""Measure what a cluster of many workers costs: the driver, the database, and the end of a large grid.

Three parts, of which the first two are measured on this machine and the third is computed:

- ``driver``: runs of a stub task through Ray and the store, as ``kdtable run --on ray`` sends them: processor time and
  memory of the driver. Nothing trains; a task claims its run and finishes it.
- ``database``: epochs a second that a PostgreSQL of this machine stores, and what so many workers would ask of it.
- ``simulation``: how long a grid takes on workers of which some are slow and some nodes are lost, relative to the
  ideal: the longest run, or all work, repeated work included, over the workers alive.
"""

import argparse
import heapq
import itertools
import json
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from bench_store import distinct  # noqa: E402

from kdtable.execution.assignment import Assignment  # noqa: E402
from kdtable.execution.backends.ray_tasks import AHEAD, RayTasks, divided  # noqa: E402
from kdtable.execution.cluster_settings import ClusterSettings, RaySettings  # noqa: E402
from kdtable.execution.dispatch import dispatch  # noqa: E402
from kdtable.execution.part import Report, check_place  # noqa: E402
from kdtable.execution.progress import Progress  # noqa: E402
from kdtable.execution.run_grid import store_row  # noqa: E402
from kdtable.models import build  # noqa: E402
from kdtable.planning.cohorts import PlannedRun  # noqa: E402
from kdtable.recipes.record import EpochRecord  # noqa: E402
from kdtable.store import Store, Worker  # noqa: E402
from kdtable.store.liveness import BEATS_PER_LEASE, LEASE  # noqa: E402
from tests import postgres  # noqa: E402

ORIGIN = {"source": "0" * 16, "packages": {}, "numerics": {}}
#: The students of CRD's tables, whose steps are timed.
STUDENTS = (
    *("resnet20", "resnet8x4", "resnet32", "wrn_16_2", "wrn_40_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"),
)
EPOCHS = 240
#: Workers of a node; part of the nodes that are lost once, and seconds until that is noticed and until they are back.
NODE, LOST, NOTICED, BACK = 8, 0.1, 30.0, 3600.0
#: Part of the workers that are slow, and how slow.
SLOW, SPEED = 0.02, 0.5


# --- the driver --------------------------------------------------------------------------------------------------


class Stub(RayTasks):
    """Sends tasks that train nothing."""

    @staticmethod
    def work(stamp: dict[str, str], packed: bytes) -> Report:
        """Claim and finish the runs of a part."""
        import pickle

        check_place(stamp)
        assignment, _, _ = pickle.loads(packed)
        history = _history()
        store = _opened(assignment.results, assignment.url)
        with Worker(store) as worker:
            for run_id in worker.claim([planned.run.id for planned in assignment.planned_runs], ORIGIN):
                with worker.holding(run_id) as held:
                    held.finish(history, "none")
        return Report()


@cache
def _opened(results: Path, url: str | None) -> Store:
    return Store(results, url)


@cache
def _history() -> tuple[EpochRecord, ...]:
    """240 made-up epochs."""
    draw = random.Random(3)
    tops = [draw.random() for _ in range(EPOCHS)]
    return tuple(
        EpochRecord("main", epoch, 0.05, 4.2 - top, {"top1": top, "top5": top}, {"ce": 1.0, "kd": 0.9}, 15.0 + top, 1)
        for epoch, top in enumerate(tops, start=1)
    )


class Measured(Progress):
    """Notes the driver's memory at every run that ends."""

    def __init__(self) -> None:
        self.memory: list[int] = []

    def epoch(self, run: Any, record: Any) -> None:
        """See the base class."""
        if record.epoch == EPOCHS:
            self.memory.append(psutil.Process().memory_info().rss)


def measure_driver(count: int, url: str | None, folder: Path) -> dict[str, Any]:
    """Send so many runs through Ray."""
    planned = _applicable(count)
    assignment = Assignment(tuple(planned), folder.absolute(), folder, url, "none", patience=0.0)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    engine = Stub(ClusterSettings(ray=RaySettings(address="local"), runs_per_task=1), "cpu")
    progress = Measured()
    with closing(Store(folder, url)) as store:
        store.plan([store_row(one) for one in planned])
        engine.check(assignment)
        wall, cpu = time.monotonic(), time.process_time()
        dispatch(engine, assignment, progress, store)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        failed = {run.reason for run in store.runs() if not run.done}
    assert not failed, failed
    tenth = max(1, count // 10)
    first, last = (
        sum(part) / len(part) / 2**20 for part in (progress.memory[tenth : 2 * tenth], progress.memory[-tenth:])
    )
    return {
        **{"runs": count, "wall_seconds": wall, "driver_cpu_ms_per_run": 1000 * cpu / count},
        **{"memory_mb_after_a_tenth": first, "memory_mb_at_the_end": last},
    }


def _applicable(count: int) -> list[PlannedRun]:
    found = [one for one in distinct(2 * count).values() if one.not_applicable is None]
    return found[:count]


# --- the database ------------------------------------------------------------------------------------------------


def measure_database(server: postgres.Server, folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """Store epochs of whole histories from several threads, each through a worker of its own.

    The threads share one interpreter, which limits them; the server's own processor time does not depend on that.
    """
    url = server.new_database()
    planned = _applicable(threads)
    with closing(Store(folder, url)) as store:
        store.plan([store_row(one) for one in planned])
    counts = [0] * threads
    history = _history()
    ready = threading.Barrier(threads)

    def work(number: int) -> None:
        run_id = planned[number].run.id
        with closing(Store(folder, url)) as store, Worker(store) as worker:
            worker.claim([run_id], ORIGIN)
            ready.wait()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                with worker.holding(run_id) as held:
                    held.record(history)
                counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for one in workers:
        one.start()
    while ready.n_waiting or not any(counts):
        time.sleep(0.01)
    before, counted_before = server.processor_seconds(), sum(counts)
    time.sleep(0.9 * seconds)
    spent, stored = server.processor_seconds() - before, sum(counts) - counted_before
    for one in workers:
        one.join()
    return {
        **{"threads": threads, "epochs_per_second": stored / (0.9 * seconds)},
        **{"server_cpu_ms_per_epoch": 1000 * spent / stored, "epochs_per_core_second": stored / spent},
    }


def asked_of_database(workers: int, epoch_seconds: float) -> float:
    """Transactions a second: a beat of every worker, and an epoch of the run that it trains."""
    return workers * BEATS_PER_LEASE / LEASE + workers / epoch_seconds


# --- the end of a grid -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """A cohort of made-up runs, each the seconds that it takes alone."""

    runs: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """A simulated grid: how long it took, the time that workers worked, and the time that they were there for."""

    makespan: float
    worked: float
    there: float
    repeated: float
    longest: float

    @property
    def over_ideal(self) -> float:
        """Makespan over the ideal."""
        ideal = max(self.longest, self.worked * self.makespan / self.there)
        return self.makespan / ideal


def measured_steps(batch_size: int = 16, turns: int = 3) -> dict[str, float]:
    """Processor seconds of a training step of each student on this machine."""
    torch.set_num_threads(1)
    images = torch.rand(batch_size, 3, 32, 32)
    found = {}
    for name in STUDENTS:
        network = build(name, 100)
        times = []
        for _ in range(turns + 1):
            began = time.process_time()
            network(images).logits.sum().backward()
            times.append(time.process_time() - began)
        found[name] = min(times[1:])
    return found


def made_up(count: int, hours: float, steps: dict[str, float], draw: random.Random) -> list[Batch]:
    """Runs of CRD's students in cohorts of up to 13 rows, as long as their steps say; ``hours`` is the mean."""
    mean = sum(steps.values()) / len(steps)
    cohorts: list[Batch] = []
    while count:
        rows = min(13, count)
        unit = 3600 * hours / mean * steps[draw.choice(sorted(steps))]
        cohorts.append(Batch(tuple(unit * draw.uniform(0.9, 1.3) for _ in range(rows))))
        count -= rows
    return cohorts


class Grid:
    """Trains cohorts on workers as the driver would: parts by :func:`divided`, some ahead in the queue.

    A lost node's parts go on elsewhere from their last epochs, once the loss is noticed.
    """

    def __init__(
        self, cohorts: list[Batch], workers: int, draw: random.Random, *, lost: float = LOST, slow: float = SLOW
    ) -> None:
        self.workers = workers
        self.speeds = [SPEED if draw.random() < slow else 1.0 for _ in range(workers)]
        self.longest = max(max(each.runs) for each in cohorts)
        self.ready: deque[tuple[float, ...]] = deque(each.runs for each in cohorts)
        self.queue: deque[tuple[float, ...]] = deque()
        self.idle = set(range(workers))
        self.training: dict[int, tuple[float, tuple[float, ...]]] = {}
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = itertools.count()
        self.unnoticed = 0
        self.divided_at = math.inf
        self.now = self.worked = self.repeated = self.gone = 0.0
        shortest = sum(map(sum, self.ready)) / workers
        for node in range(workers // NODE):
            if draw.random() < lost:
                self.at(draw.uniform(0, shortest), "lost", range(node * NODE, (node + 1) * NODE))

    def at(self, when: float, kind: str, what: Any) -> None:
        """Plan an event."""
        heapq.heappush(self.events, (when, next(self.order), kind, what))

    def run(self) -> Outcome:
        """Train everything."""
        self.hand_out()
        while self.training or self.ready or self.queue or self.unnoticed:
            self.now, _, kind, what = heapq.heappop(self.events)
            getattr(self, kind)(what)
            self.hand_out()
        there = self.workers * self.now - self.gone
        return Outcome(self.now, self.worked, there, self.repeated, self.longest)

    def hand_out(self) -> None:
        """Divide again what is left, as a look of the driver does, once a hundredth less is; fill the queue."""
        left = sum(map(len, self.ready))
        if left and left < 0.99 * self.divided_at:
            cohorts: Any = [Batch(part) for part in self.ready]
            self.ready = deque(divided(cohorts, self.workers))
            self.divided_at = left
        while self.ready and len(self.queue) + len(self.training) < AHEAD * self.workers:
            self.queue.append(self.ready.popleft())
        while self.queue and self.idle:
            worker, part = self.idle.pop(), self.queue.popleft()
            self.training[worker] = (self.now, part)
            self.at(self.now + sum(part) / self.speeds[worker], "done", (worker, self.now))

    def done(self, what: tuple[int, float]) -> None:
        """A worker has trained its part, unless it was lost before."""
        worker, since = what
        if self.training.get(worker, (None,))[0] == since:
            del self.training[worker]
            self.worked += self.now - since
            self.idle.add(worker)

    def lost(self, members: range) -> None:
        """A node dies; what its workers trained is noticed to be lost after a while."""
        self.idle.difference_update(members)
        for worker in set(members) & self.training.keys():
            since, part = self.training.pop(worker)
            self.worked += self.now - since
            # All runs of a part are in the same epoch, and train that again.
            trained_for, whole = (self.now - since) * self.speeds[worker], sum(part)
            again = trained_for % (whole / EPOCHS)
            self.repeated += again / self.speeds[worker]
            rest = 1 - (trained_for - again) / whole
            self.unnoticed += 1
            self.at(self.now + NOTICED, "free", tuple(run * rest for run in part))
        self.gone += NODE * BACK
        self.at(self.now + BACK, "back", members)

    def free(self, part: tuple[float, ...]) -> None:
        """What was lost can be trained."""
        self.unnoticed -= 1
        self.ready.appendleft(part)

    def back(self, members: range) -> None:
        """A node is back."""
        self.idle.update(members)


@contextmanager
def server() -> Iterator[postgres.Server | None]:
    """A PostgreSQL of this benchmark's own, where one is installed."""
    if postgres.binaries() is None:
        yield None
        return
    with postgres.serve() as started:
        yield started


def main() -> None:
    """Measure, compute, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stub-runs", type=int, default=10_000, help="runs of a stub task through Ray; 0 for none")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which the database is written to; 0 for none")
    parser.add_argument("--threads", type=int, default=8, help="that write to the database")
    parser.add_argument("--workers", type=int, default=1_000, help="of the simulation")
    parser.add_argument("--runs", type=int, default=100_000, help="of the simulation; 0 for none")
    parser.add_argument("--hours", type=float, default=1.0, help="mean time of a run of the simulation")
    given = parser.parse_args()
    found: dict[str, Any] = {"bench": "cluster"}
    with server() as started, tempfile.TemporaryDirectory() as name:
        if given.stub_runs:
            url = started.new_database() if started else None
            found["driver"] = measure_driver(given.stub_runs, url, Path(name) / "driver")
        if started and given.seconds:
            found["database"] = measure_database(started, Path(name) / "database", given.threads, given.seconds)
            found["database"]["asked_per_second"] = {
                workers: asked_of_database(workers, given.hours * 3600 / EPOCHS) for workers in (8, 64, 512, 1000)
            }
    if given.runs:
        draw, steps = random.Random(1), measured_steps()
        done = Grid(made_up(given.runs, given.hours, steps, draw), given.workers, draw).run()
        found["simulation"] = {
            **{"runs": given.runs, "workers": given.workers, "makespan_hours": done.makespan / 3600},
            **{"step_ms": {name: 1000 * seconds for name, seconds in steps.items()}},
            **{"repeated_hours": done.repeated / 3600, "over_ideal": done.over_ideal},
        }
    print(json.dumps(found))


if __name__ == "__main__":
    import bench_cluster  # by its name, so that Ray's workers find what they are sent

    bench_cluster.main()
