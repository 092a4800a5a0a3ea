"""Precisions and devices that a run is computed in."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from kdtable.errors import BadRequest
from kdtable.numerics.names import PRECISIONS, split_precision


@dataclass(frozen=True, slots=True)
class Precision:
    """A named precision on a device.

    Networks run under autocast in bf16 and fp16. Losses and adaptors always get float32, because several of them
    subtract nearly equal numbers. tf32 is a mode of the whole process: it rounds the inputs of every matrix product.
    """

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """The context manager for the networks' forward passes."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler; disabled except for fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def choose(name: str, device: torch.device) -> Precision:
    """The precision ``name`` on ``device``; sets the process's matrix-product mode.

    A teacher cache's suffix in ``name`` is ignored.

    Raises:
        BadRequest: unknown name, or tf32 on a device other than CUDA.
    """
    name, _ = split_precision(name)
    if name not in PRECISIONS:
        raise BadRequest(f"unknown precision '{name}': use one of {', '.join(PRECISIONS)}")
    if name == "tf32" and device.type != "cuda":
        raise BadRequest(f"precision tf32 exists on CUDA devices only, and this is {device.type}: use fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    return Precision(name, device)


def choose_device(name: str) -> torch.device:
    """A torch device from ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps``.

    Raises:
        BadRequest: unknown name, or a device that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadRequest(f"unknown device '{name}': use auto, cpu, cuda, cuda:0 or mps") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise BadRequest(f"device '{name}' is not available on this machine: use --device auto or cpu")
    return device
