"""kdtable re-runs the tables of knowledge-distillation papers beside the published numbers.

From Python: :func:`kdtable.run` trains, :func:`kdtable.results` reads (``docs/api.md``).
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtable.api import Results, results, run

    __version__: str

__all__ = ["Results", "__version__", "results", "run"]


def __getattr__(name: str) -> Any:
    """The version, and the Python interface, which needs torch and pandas: imported when they are first used."""
    if name == "__version__":
        return _version()
    if name in ("Results", "results", "run"):
        return getattr(import_module("kdtable.api"), name)
    raise AttributeError(f"module 'kdtable' has no attribute '{name}'")


@cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kdtable")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
