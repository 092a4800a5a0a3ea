"""kdtable re-runs the tables of knowledge-distillation papers beside the published numbers.

From Python: :func:`kdtable.run` trains, :func:`kdtable.results` reads (``docs/api.md``).
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtable.api import Results, results, run

__all__ = ["Results", "__version__", "results", "run"]

try:
    __version__ = version("kdtable")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is first used: it needs torch and pandas."""
    if name in ("Results", "results", "run"):
        return getattr(import_module("kdtable.api"), name)
    raise AttributeError(f"module 'kdtable' has no attribute '{name}'")
