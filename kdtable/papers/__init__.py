"""Papers as data: recipe, pairs, rows and published numbers, one TOML file each beside this module.

paper = load("crd")
paper.row("crd+kd").terms  # {"ce": 1.0, "kd": 1.0, "crd": 0.8}
"""

from kdtable.papers.loader import (
    DEFAULT_PAPER,
    Paper,
    default_paper,
    defaults,
    find_table,
    load,
    names,
    own_recipe,
)
from kdtable.papers.model import Pair, Row, Table

__all__ = [
    "DEFAULT_PAPER",
    "Pair",
    "Paper",
    "Row",
    "Table",
    "default_paper",
    "defaults",
    "find_table",
    "load",
    "names",
    "own_recipe",
]
