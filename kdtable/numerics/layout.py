"""How the arithmetic is laid out: fixed by network, device and precision, never by company or by a timing."""

import ctypes
import platform
from typing import Any, Final, TypeVar

import torch
from torch import nn

#: Intra-op threads of each network. One, because gradients differ in their last bits between thread counts; a
#: machine's cores are used by running teacher and students side by side instead, which changes no number.
THREADS: Final = 1

#: channels_last took 0.6 to 0.7 of the time of the contiguous layout for CIFAR ResNets' steps on a CPU.
LAYOUT: Final = torch.channels_last


#: Options of glibc's mallopt (malloc.h) that keep freed memory for the next step.
_KEEP_MEMORY: Final = (
    (-4, 0),  # M_MMAP_MAX: no block gets a mapping of its own
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: the end of the heap is not given back
    (-8, 1),  # M_ARENA_MAX: one heap for all threads, since blocks above 32 MiB do not fit into any other
)


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def fix_threads() -> None:
    """Make the calling thread compute every operation alone. The setting is per thread."""
    torch.set_num_threads(THREADS)


def keep_freed_memory() -> bool:
    """Let the C library reuse a step's memory in the next one instead of returning it to the system.

    Otherwise every feature map of a megabyte or more is a fresh mapping, whose pages the kernel must clear: a fifth
    to a quarter of a CIFAR student's step. It changes no number. The setting is the process's.

    Returns:
        Whether the C library has such settings: glibc does.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in _KEEP_MEMORY)


def to_device(network: AnyModule, device: torch.device) -> AnyModule:
    """Move a network to its device in the layout that it is trained in."""
    return network.to(device=device, memory_format=LAYOUT)  # type: ignore[call-overload, no-any-return]


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What must be equal for two runs of one identity to agree to the bit."""
    return {
        "torch": torch.__version__,
        "device": _device_name(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": THREADS,
        "layout": "channels_last",
        "teacher_batch_norms": "folded",
        "compile": False,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
