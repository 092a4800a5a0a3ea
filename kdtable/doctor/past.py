"""Verdicts of earlier examinations, kept in the results folder by device, driver, torch and version of kdtable."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from kdtable import __version__
from kdtable.doctor.check import Verdict
from kdtable.errors import Trouble
from kdtable.files.atomic import locked, written_whole
from kdtable.numerics.layout import fingerprint

FILE: Final = "doctor.json"


def identity(device: torch.device) -> str:
    """What verdicts of a device depend on: ``NVIDIA H200, driver 580.65, torch 2.14.1+cu130, kdtable 0.1.0``."""
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


def read(results: Path) -> dict[str, list[Verdict]]:
    """All kept verdicts by identity, oldest first.

    Raises:
        Trouble: the file is damaged.
    """
    try:
        text = (results / FILE).read_text()
    except FileNotFoundError:
        return {}
    try:
        content: dict[str, list[dict[str, Any]]] = json.loads(text)
        return {name: [Verdict(**one) for one in verdicts] for name, verdicts in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise Trouble(f"{results / FILE} is damaged: delete it, and examine the device again") from error


def keep(results: Path, device: torch.device, verdicts: Sequence[Verdict]) -> None:
    """Keep a device's verdicts in place of earlier ones of the same identity.

    Raises:
        Trouble: the file is damaged.
        OSError: it cannot be written.
    """
    results.mkdir(parents=True, exist_ok=True)
    with locked(results / f".{FILE}.lock"):
        kept = read(results) | {identity(device): list(verdicts)}
        content = {name: [asdict(one) for one in found] for name, found in kept.items()}
        with written_whole(results / FILE) as file:
            file.write(json.dumps(content, indent=1).encode())
