"""Whether a second GPU can train alone, and two together."""

from pathlib import Path

import torch

from kdtable.doctor.check import Skip, need_cuda
from kdtable.doctor.commands import finished, grid
from kdtable.doctor.rows import PAIRS


def several_gpus(device: torch.device, folder: Path) -> str:
    """Train a run on cuda:1, with recorded steps too, and a run on two GPUs by NCCL."""
    need_cuda(device, "ranks use NCCL")
    count = torch.cuda.device_count()
    if count < 2:
        raise Skip(f"it needs two GPUs, and there is {count}")
    options = ("--pairs", PAIRS[0], "--methods", "kd", "--epochs", 1)
    finished(grid(folder, "alone", *options, "--device", "cuda:1"))
    finished(grid(folder, "recorded", *options, "--device", "cuda:1", "--cuda-graphs", "on"))
    finished(grid(folder, "together", *options, "--devices", "0,1"))
    return "a run trains on cuda:1, recorded and not, and on two GPUs together"
