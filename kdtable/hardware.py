"""The machine's CPU cores. Does not import torch."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

#: Where Linux describes each core's caches.
_CORES: Final = Path("/sys/devices/system/cpu")


def divided(cores: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Split cores into ``parts`` groups of neighbours, of nearly equal size."""
    bounds = [i * len(cores) // parts for i in range(parts + 1)]
    return [cores[a:b] for a, b in pairwise(bounds)]


def core_groups(cores: Sequence[int], described: Path = _CORES) -> list[Sequence[int]]:
    """Group cores by the last-level cache that they share; one group if the system does not say."""
    groups: dict[str, list[int]] = {}
    for core in cores:
        groups.setdefault(_sharing(described / f"cpu{core}" / "cache"), []).append(core)
    return list(groups.values())


def _sharing(caches: Path) -> str:
    """The system's list of the cores that share a core's last-level cache; empty if unknown."""
    levels = {int(path.with_name("level").read_text()): path for path in caches.glob("index*/shared_cpu_list")}
    last = max(levels, default=0)
    # A machine that reports two levels mostly has a third one that the system does not see.
    return levels[last].read_text() if last > 2 else ""


def own_cores() -> set[int]:
    """Indices of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(own_cores())
