"""The checks of a device, the most valuable first."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from kdtable.doctor.check import Examine, verdict
from kdtable.doctor.environment import versions_and_flags
from kdtable.doctor.graphs import freed, refusals, replays
from kdtable.doctor.image_folders import image_folders
from kdtable.doctor.memory import memory
from kdtable.doctor.out_of_memory import halving
from kdtable.doctor.parity import half_precision, parity
from kdtable.doctor.repeats import repeats
from kdtable.doctor.resuming import resuming
from kdtable.doctor.several_gpus import several_gpus
from kdtable.doctor.speed import cohorts, layouts
from kdtable.doctor.synchronisations import synchronisations
from kdtable.errors import BadRequest
from kdtable.numerics.layout import fix_threads
from kdtable.numerics.precision import choose_device
from kdtable.store.verdicts import Verdict

CHECKS: Final[dict[str, Examine]] = {
    "versions and flags": versions_and_flags,
    "synchronisations": synchronisations,
    "parity of rows": parity,
    "half precision": half_precision,
    "fingerprint": repeats,
    "recorded steps": replays,
    "refused recordings": refusals,
    "freed recordings": freed,
    "memory": memory,
    "resuming": resuming,
    "out of memory": halving,
    "image folders": image_folders,
    "several GPUs": several_gpus,
    "speed of cohorts": cohorts,
    "speed of layouts": layouts,
}


def examine(device: torch.device, names: list[str] | None = None) -> Iterator[Verdict]:
    """Make the checks (all by default), one after the other, in a temporary folder.

    Raises:
        BadRequest: there is no check of a name.
    """
    if unknown := [name for name in names or () if name not in CHECKS]:
        raise BadRequest(f"there is no check '{unknown[0]}': use some of {', '.join(CHECKS)}")
    fix_threads()
    with tempfile.TemporaryDirectory(prefix="kdtable-doctor-") as folder:
        for number, name in enumerate(names or CHECKS):
            yield verdict(name, CHECKS[name], device, Path(folder) / str(number))


def device_to_examine(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda`` or ``cuda:i``.

    Raises:
        BadRequest: there is none, with what would help.
    """
    if not _is_cuda(name) or torch.cuda.is_available():
        return choose_device(name)
    if torch.version.cuda is None:
        help_ = f"this torch ({torch.__version__}) is built without CUDA: install a CUDA build, see https://pytorch.org"
    else:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            help_ = "CUDA sees no GPU: see whether nvidia-smi lists one, and whether CUDA_VISIBLE_DEVICES hides it"
        except RuntimeError as error:
            help_ = _help_with(str(error).partition("\n")[0])
    raise BadRequest(f"--device {name} cannot be used: {help_}")


def _is_cuda(name: str) -> bool:
    try:
        return torch.device(name).type == "cuda"
    except RuntimeError:
        return False


def _help_with(error: str) -> str:
    """What helps against an error of CUDA's start."""
    if "driver" not in error:
        return f"CUDA does not start ({error})"
    built = torch.version.cuda
    return (
        f"no driver for CUDA {built}, which this torch is built for, is here ({error}): "
        "install or update NVIDIA's driver, or install a build of torch for an older CUDA"
    )
