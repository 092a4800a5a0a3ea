"""Whether training takes no more memory than was estimated."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import torch

from kdtable.doctor.check import Failure
from kdtable.doctor.rows import BATCH, built, rows
from kdtable.execution.memory import needed, release_freed_memory
from kdtable.planning.run import Run

ROWS: Final = ("crd: kd", "crd: at", "crd: sp", "crd: vid")
MIB: Final = 2**20
#: What the process takes besides, such as kernels that are loaded on first use.
BESIDES: Final = 64 * MIB


def memory(device: torch.device, folder: Path) -> str:
    """Train four runs side by side and compare the peak of memory with the estimate."""
    runs = [replace(run, recipe=replace(run.recipe, batch_size=BATCH)) for run in map(rows().__getitem__, ROWS)]
    _steps(runs[:1], device)  # loads what is loaded on first use
    release_freed_memory(device)
    peak: list[float] = []
    with _watched(device, peak):
        _steps(runs, device)
    allowed = needed(runs, device) + BESIDES
    if peak[0] > allowed:
        raise Failure(f"{len(runs)} runs took {peak[0] / MIB:.0f} MiB, and {allowed / MIB:.0f} MiB were estimated")
    return f"{len(runs)} runs took {peak[0] / MIB:.0f} MiB of {allowed / MIB:.0f} MiB estimated"


def _steps(runs: list[Run], device: torch.device) -> None:
    made = [built(run, device) for run in runs]
    for one in made:
        one.member.begin_epoch()
        teacher = one.stage_teacher()
        for batch in one.batches("main", 2):
            one.member.step(batch, one.outputs(teacher, batch))


@contextmanager
def _watched(device: torch.device, peak: list[float]) -> Iterator[None]:
    """Append the peak of the memory that the block takes, in bytes: by the allocator, or on a CPU of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        peak.append(float(torch.cuda.max_memory_allocated(device) - before))
        return
    process, ended = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not ended.is_set():
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        peak.append(float(highest - before))
