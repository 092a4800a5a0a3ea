"""Threads and memory layout: fixed by network, device and precision, never by cohort size or a timing."""

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

import torch
from torch import nn

#: Intra-op threads of each network. One, because the last bits of gradients depend on the thread count. Cores are used
#: by running the teacher and students in parallel instead, which changes no result.
THREADS: Final = 1

#: On a CPU, a CIFAR ResNet's step in channels_last takes 0.6 to 0.7 of its time in the contiguous layout.
LAYOUT: Final = torch.channels_last


#: Options of glibc's mallopt (malloc.h) that keep freed memory in the process.
_KEEP_MEMORY: Final = (
    (-4, 0),  # M_MMAP_MAX: allocate every block from the heap, none by mmap
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: never return the end of the heap
    (-8, 1),  # M_ARENA_MAX: one heap for all threads, since only the main one holds blocks above 32 MiB
)


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def fix_threads() -> None:
    """Limit the calling thread to one intra-op thread. The setting is per thread."""
    torch.set_num_threads(THREADS)


def begin_thread(device: torch.device) -> None:
    """Prepare a thread that computes on a device: one intra-op thread, and its current CUDA device."""
    fix_threads()
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the calling thread's current one; for other devices do nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def keep_freed_memory() -> bool:
    """Let the C library reuse a step's memory in the next step instead of returning it to the system.

    Otherwise every feature map of a megabyte or more is a new mapping whose pages the kernel must clear, which takes
    20 to 25 % of a CIFAR student's step. Changes no result. The setting is per process.

    Returns:
        Whether the C library supports this: glibc does.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in _KEEP_MEMORY)


def to_device(network: AnyModule, device: torch.device) -> AnyModule:
    """Move a network to a device, in the layout used for training."""
    return network.to(device=device, memory_format=LAYOUT)  # type: ignore[call-overload, no-any-return]


def fingerprint(device: torch.device, *, cuda_graphs: bool = False) -> dict[str, Any]:
    """The numerics fingerprint: two runs of one identity agree to the bit if it is equal."""
    recorded = {"cuda_graphs": True} if cuda_graphs else {}
    return recorded | {
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
