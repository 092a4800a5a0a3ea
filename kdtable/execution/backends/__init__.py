"""Where cohorts train: backends by name."""

from importlib import import_module
from typing import Any, Final

#: Each is a :class:`~kdtable.execution.backends.base.Backend`, imported on first use.
BACKENDS: Final = {
    "local": "kdtable.execution.backends.local:Local",
    "processes": "kdtable.execution.backends.processes:Processes",
    "ranks": "kdtable.execution.backends.rank_group:RankGroup",
}


def get(name: str) -> Any:
    """The class of a backend."""
    module, _, found = BACKENDS[name].partition(":")
    return getattr(import_module(module), found)
