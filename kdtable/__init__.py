"""kdtable re-runs the tables of knowledge-distillation papers beside the published numbers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kdtable")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
