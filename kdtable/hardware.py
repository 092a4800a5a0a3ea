"""The machine's CPU cores. Free of torch."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

#: Where Linux describes each core's caches.
_CORES: Final = Path("/sys/devices/system/cpu")


def divided(cores: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Neighbouring cores in so many parts of nearly equal size."""
    bounds = [i * len(cores) // parts for i in range(parts + 1)]
    return [cores[a:b] for a, b in pairwise(bounds)]


def core_groups(cores: Sequence[int], described: Path = _CORES) -> list[Sequence[int]]:
    """Cores by the last-level cache that they share; one group where the system does not say."""
    groups: dict[str, list[int]] = {}
    for core in cores:
        groups.setdefault(_sharing(described / f"cpu{core}" / "cache"), []).append(core)
    return list(groups.values())


def _sharing(caches: Path) -> str:
    """Who shares a core's last-level cache, as the system writes it."""
    levels = {int(path.with_name("level").read_text()): path for path in caches.glob("index*/shared_cpu_list")}
    last = max(levels, default=0)
    # Behind a second level there is mostly one more, which the system does not see.
    return levels[last].read_text() if last > 2 else ""


def own_cores() -> set[int]:
    """Numbers of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def available_cores() -> int:
    """How many cores this process may use."""
    return len(own_cores())
