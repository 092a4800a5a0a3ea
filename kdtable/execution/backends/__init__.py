"""Where cohorts train: backends by name."""

from typing import Any, Final

from kdtable.plugins import Registry

#: Each is the class of a :class:`~kdtable.execution.backends.base.Backend`; ``ray`` and ``slurm`` are engines.
BACKENDS: Final[Registry[Any]] = Registry(
    "kdtable.backends",
    {
        "local": "kdtable.execution.backends.local:Local",
        "processes": "kdtable.execution.backends.processes:Processes",
        "ranks": "kdtable.execution.backends.rank_group:RankGroup",
        "ray": "kdtable.execution.backends.ray_tasks:RayTasks",
        "slurm": "kdtable.execution.backends.slurm_arrays:SlurmArrays",
    },
)
