"""What the verdicts on a device depend on."""

from pathlib import Path

import torch

from kdtable import __version__
from kdtable.numerics.layout import fingerprint


def identity(device: torch.device) -> str:
    """The device and versions: ``NVIDIA H200, driver 580.65, torch 2.14.1+cu130, kdtable 0.1.0``."""
    driver = f", driver {_driver()}" if device.type == "cuda" else ""
    return f"{fingerprint(device)['device']}{driver}, torch {torch.__version__}, kdtable {__version__}"


def _driver() -> str:
    """The driver's version, from the system; "unknown" where it does not say."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    words = text.partition("Module")[2].split()
    return next((word for word in words if word[0].isdigit()), "unknown")
