"""What a machine has: versions, flags, devices, disk, memory, folders, stores, and extras that are missing."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

import psutil
import torch

from kdtable import __version__
from kdtable.errors import BadRequest
from kdtable.hardware import available_cores
from kdtable.store import Store
from kdtable.store.address import without_password

GIB: Final = 2**30
#: Packages whose versions matter to results.
PACKAGES: Final = ("torch", "torchvision", "numpy", "sqlalchemy")
#: Environment variables that change what torch or kdtable does.
FLAGS: Final = ("KDTABLE_", "CUDA_", "PYTORCH_", "TORCH_", "OMP_", "MKL_", "NCCL_", "CUBLAS_")
#: Extras that a user of kdtable does not need.
OF_DEVELOPERS: Final = ("dev",)


def environment(results: Path, data_root: Path, store: str | None) -> Iterator[tuple[str, str]]:
    """Pairs of what was looked at and what was found."""
    yield "versions", _versions()
    yield "flags", _flags()
    yield "devices", "; ".join(_devices())
    free = psutil.virtual_memory().available / GIB
    yield "memory", f"{free:.1f} GiB free, {available_cores()} cores"
    for name, folder in (("results", results), ("data", data_root)):
        yield name, f"{folder}: {_writable(folder)}"
    yield "store", _reachable(results, store)
    yield "extras", _extras()


def versions_and_flags(device: torch.device, folder: Path) -> str:
    """What a check of a device says of its software."""
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    of_cuda = f", CUDA {torch.version.cuda}, cuDNN {cudnn}" if cudnn else ""
    return f"{_versions()}{of_cuda}; flags: {_flags()}"


def _versions() -> str:
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return f"kdtable {__version__}, Python {sys.version.split()[0]}, {packages}"


def _flags() -> str:
    found = [f"{k}={without_password(v)}" for k, v in sorted(os.environ.items()) if k.startswith(FLAGS)]
    return ", ".join(found) or "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _devices() -> Iterator[str]:
    yield f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    if torch.backends.mps.is_available():
        yield "mps"
    if not torch.cuda.is_available():
        yield "no CUDA device"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, whole = (size / GIB for size in torch.cuda.mem_get_info(index))
        capability = f"{properties.major}.{properties.minor}"
        yield f"cuda:{index} {properties.name} ({capability}), {free:.1f} of {whole:.1f} GiB free"


def _writable(folder: Path) -> str:
    """Whether files can be written in a folder, or in the nearest one above it that exists, and the room there."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    room = f"{shutil.disk_usage(there).free / GIB:.1f} GiB free"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written to, {room}"
    return f"can be written to, {room}" if there == folder.absolute() else f"can be made in {there}, {room}"


def _reachable(results: Path, url: str | None) -> str:
    try:
        store = Store(results, url, create=False)
    except BadRequest as error:
        return str(error)
    store.close()
    return "can be reached"


def _extras() -> str:
    try:
        declared = requires("kdtable") or []
    except PackageNotFoundError:
        return "unknown, since kdtable runs from its sources and is not installed"
    missing = missing_extras(declared)
    if not missing:
        return "all are installed"
    return f"missing: {', '.join(missing)}; install with: pip install 'kdtable[{','.join(missing)}]'"


def missing_extras(declared: list[str]) -> list[str]:
    """Extras of which a package is missing, given requirements such as ``psycopg[binary]<4; extra == 'postgres'``."""
    found = (re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", text) for text in declared)
    missing = {match[2] for match in found if match and _version(match[1]) == "missing"}
    return sorted(missing - {*OF_DEVELOPERS})
