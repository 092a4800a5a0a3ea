"""A check and its verdict."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from kdtable.numerics.layout import on_device
from kdtable.store.verdicts import FAILED, PASSED, SKIPPED, Verdict

#: What a check does on a device, with a folder of its own; returns what it found, in a few words.
Examine = Callable[[torch.device, Path], str]


class Skip(Exception):
    """A check cannot be made here; the text says why."""


class Failure(Exception):
    """A check found something wrong; the text says what."""


def verdict(name: str, examine: Examine, device: torch.device, folder: Path) -> Verdict:
    """Make a check. Whatever goes wrong in it is its verdict, so that the other checks still run."""
    started = time.perf_counter()
    folder.mkdir(parents=True)
    try:
        with on_device(device):
            result, words = PASSED, examine(device, folder)
    except Skip as reason:
        result, words = SKIPPED, str(reason)
    except Failure as found:
        result, words = FAILED, str(found)
    except Exception as error:  # any error of a library is a finding too
        result, words = FAILED, f"{type(error).__name__}: {error}".partition("\n")[0]
    return Verdict(name, result, words, time.perf_counter() - started)


def need_cuda(device: torch.device, what: str) -> None:
    """Skip a check that says something of CUDA devices only.

    Raises:
        Skip: the device is another one.
    """
    if device.type != "cuda":
        raise Skip(f"{what} on CUDA devices only")
