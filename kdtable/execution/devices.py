"""The device and cores of each worker of a command."""

from dataclasses import dataclass

import torch

from kdtable.errors import BadRequest
from kdtable.hardware import core_groups, divided, own_cores
from kdtable.numerics.names import CUDA_GRAPHS, split_precision


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


def records_steps(choice: str, precision: str, device: torch.device, ranks: int) -> bool:
    """Whether steps are recorded as CUDA graphs, by ``--cuda-graphs``; "auto" means no.

    Raises:
        BadRequest: an unknown choice, or "on" where no step can be recorded.
    """
    if choice not in CUDA_GRAPHS:
        raise BadRequest(f"--cuda-graphs is one of {', '.join(CUDA_GRAPHS)}, not '{choice}'")
    if choice != "on":
        return False
    if device.type != "cuda":
        raise BadRequest(f"--cuda-graphs on needs a CUDA device, and this is {device.type}: leave it out")
    if split_precision(precision)[0] == "fp16":
        raise BadRequest(
            "--cuda-graphs on does not go with fp16, whose loss scaler asks the host in every step: use bf16"
        )
    if ranks > 1:
        raise BadRequest(
            "--cuda-graphs on is for runs on one device: leave it out, or leave out --devices and torchrun"
        )
    return True


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
