"""How the arithmetic is laid out: fixed by network, device and precision, never by company or by a timing."""

import platform
from typing import Any, Final

import torch
from torch import nn

#: Intra-op threads of each network. One, because gradients differ in their last bits between thread counts; a
#: machine's cores are used by running teacher and students side by side instead, which changes no number.
THREADS: Final = 1

#: channels_last took 0.6 to 0.7 of the time of the contiguous layout for CIFAR ResNets' steps on a CPU.
LAYOUT: Final = torch.channels_last


def fix_threads() -> None:
    """Make the calling thread compute every operation alone. The setting is per thread."""
    torch.set_num_threads(THREADS)


def place(network: nn.Module, device: torch.device) -> nn.Module:
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
        "compile": False,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
