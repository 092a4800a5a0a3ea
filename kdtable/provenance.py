"""Provenance of results: code, packages, machine."""

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from kdtable import __version__

#: Packages that can change what a run computes or how it is stored.
PACKAGES: Final = ("torch", "torchvision", "numpy", "pillow", "sqlalchemy")


#: Packages that matter only to runs whose networks they give.
OF_NETWORKS: Final = ("timm",)


@lru_cache
def source_files() -> dict[str, str]:
    """Hashes of this package's Python sources and papers by path, such as ``kdtable/methods/kd.py``."""
    root = Path(__file__).parent
    found = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".toml"))
    return {
        path.relative_to(root.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in found
    }


@lru_cache
def source_hash() -> str:
    """Hash of :func:`source_files`; it shows a change even if no version was raised."""
    return hashlib.sha256(json.dumps(source_files(), sort_keys=True).encode()).hexdigest()[:16]


def with_networks(origin: Mapping[str, Any], networks: Iterable[str]) -> Mapping[str, Any]:
    """The provenance of a run with these networks: it has the versions of the packages that give them, too."""
    libraries = {name.partition(":")[0] for name in networks}
    used = {name: version(name) for name in OF_NETWORKS if name in libraries}
    return {**origin, "packages": origin["packages"] | used} if used else origin


def provenance(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What is stored with a run besides its identity."""
    return {
        "kdtable": __version__,
        "source": source_hash(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "numerics": fingerprint,
    }
