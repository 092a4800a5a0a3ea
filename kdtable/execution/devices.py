"""Which device and cores each worker of a command uses."""

from dataclasses import dataclass

import torch

from kdtable.errors import BadRequest
from kdtable.hardware import core_groups, divided, own_cores


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """Where one worker computes.

    Attributes:
        device: as torch names it.
        cores: the CPU cores that it may use.
        sharers: workers of the command on this device, itself included.
    """

    device: str
    cores: tuple[int, ...]
    sharers: int


def device_slots(jobs: str, device: torch.device, cohorts: int) -> list[DeviceSlot]:
    """Where the workers of a command compute; one place means that it needs none.

    ``auto`` is one per CUDA device, or one per group of cores that share a last-level cache. Where there are fewer
    cohorts, there are as many workers as cohorts, with all cores.

    Args:
        jobs: ``auto`` or a number.
        device: as chosen; a CUDA device with an index is the only one that is used.
        cohorts: how many there are to train.

    Raises:
        BadRequest: neither, or more jobs than cores.
    """
    cores, devices = sorted(own_cores()), _devices(device)
    groups = core_groups(cores) if device.type == "cpu" else divided(cores, min(len(devices), len(cores)))
    if jobs != "auto":
        groups = divided(cores, _number(jobs, len(cores)))
    if len(groups) > max(cohorts, 1):
        groups = divided(cores, max(cohorts, 1))
    names = [devices[i % len(devices)] for i in range(len(groups))]
    return [DeviceSlot(name, tuple(group), names.count(name)) for name, group in zip(names, groups, strict=True)]


def _number(jobs: str, cores: int) -> int:
    if not jobs.isdecimal() or int(jobs) < 1:
        raise BadRequest(f"--jobs takes a number of worker processes or auto, not '{jobs}'")
    if int(jobs) > cores:
        raise BadRequest(f"--jobs {jobs} is more than the {cores} cores that may be used here")
    return int(jobs)


def _devices(device: torch.device) -> list[str]:
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [str(device)]
