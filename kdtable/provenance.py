"""Provenance of results: code, packages, machine."""

import hashlib
import platform
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from kdtable import __version__

#: Packages that can change what a run computes or how it is stored.
PACKAGES: Final = ("torch", "torchvision", "numpy", "pillow", "sqlalchemy")


@lru_cache
def source_hash() -> str:
    """Hash of this package's Python sources and papers; it shows a change even if no version was raised."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    found = [path for path in root.rglob("*") if path.suffix in (".py", ".toml")]
    for name, path in sorted((f"/{path.relative_to(root).as_posix()}", path) for path in found):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


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
