"""The numerics fingerprint of the device, and whether training there repeats to the bit."""

from pathlib import Path
from typing import Final

import torch

from kdtable.doctor.check import Failure
from kdtable.doctor.parity import course
from kdtable.doctor.rows import rows
from kdtable.numerics.layout import fingerprint

ROWS: Final = ("crd: vanilla", "crd: kd", "crd: at", "crd: crd")


def repeats(device: torch.device, folder: Path) -> str:
    """Train some rows twice; on a CPU both must end in the same bits, on a GPU the check says whether they do."""
    text = ", ".join(f"{key} {value}" for key, value in fingerprint(device).items())
    differ = []
    for name in ROWS:
        one, other = (course(rows()[name], device).weights for _ in range(2))
        if not torch.equal(one, other):
            differ.append(name)
    if differ and device.type == "cpu":
        raise Failure(f"{', '.join(differ)} do not repeat to the bit ({text})")
    same = f"not to the bit ({', '.join(differ)} differ)" if differ else "to the bit"
    return f"{len(ROWS)} rows repeat {same} ({text})"
