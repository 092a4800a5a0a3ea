"""Provenance of results: code, packages, machine."""

import hashlib
import platform
import sys
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from kdtable import __version__


@lru_cache
def source_hash() -> str:
    """Hash of this package's Python sources and papers; it shows a change even if no version was raised."""
    root = files("kdtable")
    digest = hashlib.sha256()
    pending, found = [(root, "")], []
    while pending:
        folder, prefix = pending.pop()
        for item in folder.iterdir():
            name = f"{prefix}/{item.name}"
            if item.is_dir():
                pending.append((item, name))
            elif name.endswith((".py", ".toml")):
                found.append((name, item.read_bytes()))
    for name, content in sorted(found):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def provenance(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What is stored with a run besides its identity."""
    packages = ("torch", "torchvision", "numpy", "sqlalchemy")
    return {
        "kdtable": __version__,
        "source": source_hash(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "numerics": fingerprint,
    }
