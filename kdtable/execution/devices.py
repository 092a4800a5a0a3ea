"""The device and cores of each worker of a command."""

from dataclasses import dataclass

import torch

from kdtable.errors import BadRequest
from kdtable.hardware import core_groups, divided, own_cores


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """The device and cores of one worker.

    Attributes:
        device: torch's name of the device.
        cores: the CPU cores that the worker may use.
        sharers: number of the command's workers on this device, itself included.
    """

    device: str
    cores: tuple[int, ...]
    sharers: int


def device_slots(jobs: str, device: torch.device, cohorts: int) -> list[DeviceSlot]:
    """One slot for each worker of a command; with a single slot the command trains without worker processes.

    ``auto`` is one worker per CUDA device, or one per group of cores that share a last-level cache. There are at most
    as many workers as cohorts; they divide all cores.

    Args:
        jobs: ``auto`` or a number.
        device: the chosen device; a CUDA device with an index is the only one used.
        cohorts: number of cohorts to train.

    Raises:
        BadRequest: ``jobs`` is neither, or more than the cores.
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
