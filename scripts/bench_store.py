"""Measure a store of very many runs: time of status, report and planning a grid, and size on disk.

The runs are made up: the CRD paper's tables at several weight decays, with all epochs, written through the store's own
interface. Every command is timed as a separate process, from start to end.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from kdtable.data.spec import DataSpec
from kdtable.execution.run_grid import store_row
from kdtable.papers import find_table
from kdtable.planning.cohorts import PlannedRun, cohorts, missing
from kdtable.planning.request import Changes, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teacher_refs import FileTeacher
from kdtable.recipes.record import EpochRecord
from kdtable.store import FILE_NAME, Store
from kdtable.store.maintenance.bulk import WholeRun, add_whole
from kdtable.store.records import Provenance, Result, choose, packed
from kdtable.store.rows import batches, now

ROWS = ("vanilla", *find_table("crd-1")[1].rows)
SEEDS = range(1, 51)
ORIGIN = {"kdtable": "0", "source": "0" * 16, "python": "3", "packages": {"torch": "2"}, "numerics": {"device": "cpu"}}
PROVENANCE = Provenance.of([json.dumps(ORIGIN, sort_keys=True)])
#: Runs in one transaction.
AT_ONCE = 500
#: Limits in seconds, and bytes.
ALLOWED = {"status": 2.0, "report": 2.0, "report --table crd-1": 2.0, "plan": 2.0, "bytes": 3e9}


def teacher(network: str, data: DataSpec) -> FileTeacher:
    return FileTeacher(network, data.mean, data.std, network.ljust(64, "0"), Path(network))


def planned_runs(decay: int, seeds: Iterable[int] = SEEDS) -> tuple[PlannedRun, ...]:
    """The grid of both tables at a weight decay of so many and a half 1e-4: never their own, 5e-4."""
    request = Request(["all"], ROWS, list(seeds), changes=Changes(overrides=[f"weight_decay={decay}.5e-4"]))
    return resolve(request, teacher)


def distinct(count: int) -> dict[str, PlannedRun]:
    """So many different runs, by id."""
    found: dict[str, PlannedRun] = {}
    step = 0
    while len(found) < count:
        step += 1
        found |= {planned.run.id: planned for planned in planned_runs(step)}
    return dict(islice(found.items(), count))


def trained(planned: PlannedRun, draw: random.Random, epochs: int) -> WholeRun:
    """A record as training leaves it; a few runs fail, some are not trained yet."""
    run = replace(store_row(planned), created=now())
    fate = draw.random()
    if run.status == "n/a" or fate < 0.05:
        return WholeRun(run)
    if fate < 0.06:
        return WholeRun(replace(run, status="failed", reason="the loss became NaN in epoch 3 of stage main (term at)"))
    history = [
        EpochRecord(
            "main",
            epoch,
            lr=0.05,
            train_loss=4.2 - top,
            metrics={"top1": top, "top5": top, "train-top1": top},
            terms={"ce": 1.0, "kd": 0.9},
            seconds=31.25 + top,
            cohort_size=13,
            test_loss=4.3 - top,
        )
        for epoch, top in enumerate((draw.random() for _ in range(epochs)), start=1)
    ]
    code, chosen = str(ORIGIN["source"]), choose(history, run.protocol.main)
    result = Result(code, PROVENANCE, now(), now(), chosen, 276_000, 31.5 * epochs)
    return WholeRun(replace(run, status="done", kept="last", result=result), [result], {code: packed(history)})


def fill(store: Store, runs: int, epochs: int) -> None:
    draw = random.Random(0)
    chosen = distinct(runs)
    for number, some in enumerate(batches(chosen, AT_ONCE), start=1):
        with store.database.write() as db:
            add_whole(db, [trained(chosen[run_id], draw, epochs) for run_id in some])
        if number % 20 == 0:
            print(f"{number * AT_ONCE:,} runs", file=sys.stderr)


def seconds(work: Callable[[], object], turns: int) -> tuple[list[float], list[float]]:
    """Wall time, and CPU time, which other processes do not lengthen."""
    walls, processors = [], []
    for _ in range(turns):
        start, used = time.perf_counter(), sum(os.times()[:4])
        work()
        walls.append(round(time.perf_counter() - start, 3))
        processors.append(round(sum(os.times()[:4]) - used, 3))
    return walls, processors


def command(*words: str, store_options: list[str]) -> Callable[[], object]:
    """Call the command line and discard its output."""
    whole = [sys.executable, "-m", "kdtable", *words, *store_options]
    return lambda: subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)


def planning(folder: Path, url: str | None) -> Callable[[], int]:
    """Read and write what `run` does before it trains a grid of 10,000 runs, some of which the store has."""

    def plan() -> int:
        with closing(Store(folder, url)) as store:
            grid = planned_runs(1, range(1, 61))[:10_000]
            store.plan([store_row(planned) for planned in grid])
            return len(cohorts(missing(grid, store.statuses(planned.run.id for planned in grid))))

    return plan


def size_of(store: Store) -> int:
    """Size of the database on disk, in bytes."""
    if store.database.is_server:
        with store.database.read() as db:
            return int(db.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
    store.close()  # merges the log into the file
    return (store.folder / FILE_NAME).stat().st_size


def measure(folder: Path, url: str | None, runs: int, epochs: int, turns: int) -> dict[str, object]:
    with closing(Store(folder, url)) as store:
        start = time.perf_counter()
        if not store.statuses(distinct(1)):
            fill(store, runs, epochs)
        filled = time.perf_counter() - start
        size = size_of(store)
    store_options = ["--results", str(folder), *(["--store", url] if url else [])]
    work = {
        name: command(*name.split(), store_options=store_options)
        for name in ("status", "report", "report --table crd-1")
    }
    work["plan"] = planning(folder, url)
    times = {name: seconds(one, turns) for name, one in work.items()}
    print(f"{runs:,} runs of {epochs} epochs in {'PostgreSQL' if url else 'SQLite'}, over {turns} turns; seconds")
    print(f"{'':22} {'median':>7} {'least':>7} {'most':>7} {'CPU':>7} {'allowed':>8}")
    for name, (walls, used) in times.items():
        what = "plan 10,000 runs" if name == "plan" else name
        figures = (statistics.median(walls), min(walls), max(walls), statistics.median(used))
        print(f"{what:22} {' '.join(f'{figure:7.2f}' for figure in figures)} {ALLOWED[name]:8.1f}")
    print(f"{size / 1e9:.2f} GB on disk, {ALLOWED['bytes'] / 1e9:.0f} allowed; written in {filled:.0f} s")
    wall, cpu = ({name: pair[i] for name, pair in times.items()} for i in (0, 1))
    return {"seconds": wall, "cpu_seconds": cpu, "bytes": size, "seconds_to_write": round(filled, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--store", default=os.environ.get("KDTABLE_STORE"), help="URL of an empty PostgreSQL database.")
    parser.add_argument("--folder", type=Path, help="Keep the store here, and use it if it is there.")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kdtable-bench-"))
    try:
        found = measure(folder, args.store, args.runs, args.epochs, args.turns)
        kind = "postgresql" if args.store else "sqlite"
        print(json.dumps({"bench": "store", "kind": kind, "runs": args.runs, "epochs": args.epochs, **found}))
    finally:
        if args.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
