"""Settings of clusters: ``[cluster]`` of ``kdtable.toml``, and ``--cluster KEY=VALUE`` over it."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt

from kdtable.errors import BadRequest
from kdtable.settings import merged, table
from kdtable.typed import read

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySettings:
    """``[cluster.ray]``.

    Attributes:
        address: HOST:PORT of a cluster's head; ``auto`` for the one that this machine belongs to (``RAY_ADDRESS``), or
            else Ray on this machine alone; ``local`` for the latter in any case.
        accelerator_type: Ray's name of the only kind of GPU to use, such as ``A100``.
        labels: labels that a node must have (Ray's ``label_selector``).
    """

    address: str = "auto"
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """``[cluster]``: what a task of a cluster is.

    Attributes:
        per_gpu: number of tasks that share a GPU.
        cpus: CPU cores of a task.
        memory_gb: memory of a task, in 1e9 bytes; by default nothing is asked for.
        runs_per_task: maximum number of runs that train together in a task; by default as few as keep every GPU (Ray)
            or core busy, and as many as the hours of an element take (Slurm).
        hours: how long an element of a Slurm array is meant to last.
        pause: seconds between two looks at Slurm's queue.
        checkpoints: URL or path of the folder of checkpoints and students; by default they are in the results folder.
        ray: of Ray alone.
        slurm: of Slurm alone: parameters of submitit's ``SlurmExecutor``, passed on as they are.
    """

    per_gpu: Count = 1
    cpus: Count = 1
    memory_gb: Positive | None = None
    runs_per_task: Count | None = None
    hours: Positive = 1.0
    pause: Positive = 10.0
    checkpoints: str | None = None
    ray: RaySettings = field(default_factory=RaySettings)
    slurm: Mapping[str, Any] = field(default_factory=dict)


def cluster_settings(options: Iterable[str] = ()) -> ClusterSettings:
    """Read the settings of the files, and ``options`` (KEY=VALUE, such as ``slurm.partition=gpu``) over them.

    Raises:
        BadRequest: a file or an option is wrong.
    """
    found = table("cluster")
    for option in options:
        found = merged(found, _given(option))
    try:
        read(RaySettings, found.get("ray", {}))  # by itself, so that an unknown name is answered with the known ones
    except ValueError as error:
        raise BadRequest(f"[cluster.ray] of kdtable.toml, or --cluster: {error}") from None
    try:
        return read(ClusterSettings, found)
    except ValueError as error:
        raise BadRequest(f"[cluster] of kdtable.toml, or --cluster: {error}") from None


def _given(option: str) -> dict[str, Any]:
    key, equals, text = option.partition("=")
    if not equals or not key.strip():
        raise BadRequest(f"--cluster takes KEY=VALUE such as slurm.partition=gpu, not '{option}'")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:  # a text without quotes
        value = text
    for name in reversed(key.strip().split(".")):
        value = {name: value}
    return dict(value)
