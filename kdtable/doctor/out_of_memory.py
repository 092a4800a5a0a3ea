"""Whether a cohort that does not fit into the GPU's memory is halved and trained."""

from pathlib import Path
from typing import Final

import torch

from kdtable.doctor.check import Failure, need_cuda
from kdtable.doctor.commands import finished, grid

#: Together their weights, gradients and momentum take about 640 MiB; each fits alone.
STUDENTS: Final = ("vgg11", "vgg13", "vgg16", "vgg19")
LIMIT: Final = 400 * 2**20


def halving(device: torch.device, folder: Path) -> str:
    """Train four students together where only some fit."""
    need_cuda(device, "the allocator's limit can be set")
    fraction = LIMIT / torch.cuda.get_device_properties(device).total_memory
    limited = f"import torch\ntorch.cuda.set_per_process_memory_fraction({fraction}, {str(device)!r})"
    pairs = ",".join(f"resnet14:{student}" for student in STUDENTS)
    options = ("--pairs", pairs, "--methods", "vanilla", "--epochs", 1, "--batch-size", 16, "--device", device)
    said = finished(grid(folder, "results", *options), limited)
    if "memory ran out with" not in said:
        raise Failure(f"memory did not run out under a limit of {LIMIT / 2**20:.0f} MiB")
    return "a cohort that did not fit was halved, and trained"
