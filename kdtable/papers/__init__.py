"""Papers as data: recipe, pairs, rows and published numbers, each in one TOML file beside this module."""

from kdtable.papers.loader import (
    DEFAULT_PAPER,
    Paper,
    defaults,
    find_table,
    load,
    names,
    own_recipe,
    shared_recipe,
)
from kdtable.papers.model import Pair, Row, Table

__all__ = [
    "DEFAULT_PAPER",
    "Pair",
    "Paper",
    "Row",
    "Table",
    "defaults",
    "find_table",
    "load",
    "names",
    "own_recipe",
    "shared_recipe",
]
