"""Papers as data: recipe, pairs, rows and published numbers, each in one TOML file beside this module."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Any

from kdtable.errors import BadRequest, unknown
from kdtable.methods import base_name
from kdtable.recipe import Recipe

DEFAULT_PAPER = "crd"


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher and a student network, by canonical name."""

    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher}:{self.student}"


@dataclass(frozen=True, slots=True)
class Row:
    """Settings of one method.

    Attributes:
        name: of the row.
        terms: loss weights of the main stage, in the order of addition.
        params: hyper-parameters.
        stages: epochs of the stages before the main one at the paper's full length, by name.
        student_params: further hyper-parameters for students whose name fits a pattern (``wrn_*``).
    """

    name: str
    terms: Mapping[str, float]
    params: Mapping[str, Any]
    stages: Mapping[str, int] = field(default_factory=dict)
    student_params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def params_for(self, student: str) -> dict[str, Any]:
        """Hyper-parameters for a student (canonical name)."""
        own = [params for pattern, params in self.student_params.items() if fnmatchcase(student, pattern)]
        return {key: value for params in (self.params, *own) for key, value in params.items()}


@dataclass(frozen=True, slots=True)
class Table:
    """A published table.

    Attributes:
        name: as ``--table`` takes it.
        title: what it shows.
        source: where its numbers were read.
        metric: what its cells hold, in percent.
        epoch: "last" or "best": which epoch's accuracy is reported.
        pairs: its columns.
        rows: its method rows, top to bottom; the teacher's and the student's come before them.
        published: row name ("teacher" and "student" included) to one value per pair; NaN where the paper says N/A.
    """

    name: str
    title: str
    source: str
    metric: str
    epoch: str
    pairs: tuple[Pair, ...]
    rows: tuple[str, ...]
    published: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Paper:
    """A publication whose tables are re-run."""

    name: str
    title: str
    data: str
    recipe: Recipe
    student_recipes: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Row]
    tables: Mapping[str, Table]

    def recipe_for(self, student: str) -> Recipe:
        """The recipe of a student, whose learning rate may be its own."""
        return replace(self.recipe, **self.student_recipes.get(student, {}))

    def row(self, name: str) -> Row:
        """The settings of a method or of its combination with KD.

        Unless the paper lists a combination itself, ``X+kd`` is the KD row's weights and X with its own.

        Raises:
            BadRequest: unknown method.
        """
        base = base_name(name)
        if name in self.rows:
            return self.rows[name]
        own, kd = self.rows.get(base), self.rows.get("kd")
        if own is None or kd is None:
            raise unknown(f"row of paper {self.name}", name, self.rows)
        terms = {**kd.terms, **{term: weight for term, weight in own.terms.items() if term != "ce"}}
        return replace(own, name=name, terms=terms, params={**kd.params, **own.params})


def names() -> list[str]:
    """Names of all papers."""
    return sorted(f.name.removesuffix(".toml") for f in files(__name__).iterdir() if f.name.endswith(".toml"))


@lru_cache
def load(name: str) -> Paper:
    """The paper ``name``.

    Raises:
        BadRequest: unknown paper.
    """
    if name not in names():
        raise unknown("paper", name, names())
    raw = tomllib.loads((files(__name__) / f"{name}.toml").read_text())
    return Paper(
        name=name,
        title=raw["title"],
        data=raw["data"],
        recipe=Recipe.from_mapping(raw["recipe"]),
        student_recipes=raw.get("student_recipes", {}),
        rows={key: Row(name=key, **{"params": {}, **row}) for key, row in raw["rows"].items()},
        tables={key: _table(key, table) for key, table in raw.get("tables", {}).items()},
    )


def defaults(row: str, student: str) -> tuple[Mapping[str, float], Mapping[str, Any]] | None:
    """Loss weights and hyper-parameters of the default paper's row for a student; ``None`` for an unknown row."""
    try:
        own = load(DEFAULT_PAPER).row(row)
    except BadRequest:
        return None
    return own.terms, own.params_for(student)


def find_table(name: str) -> tuple[Paper, Table]:
    """The table ``name`` and its paper.

    Raises:
        BadRequest: no paper has such a table.
    """
    tables = {table: paper for paper in map(load, names()) for table in paper.tables}
    if name not in tables:
        raise unknown("table", name, tables)
    return tables[name], tables[name].tables[name]


def _table(name: str, raw: Mapping[str, Any]) -> Table:
    pairs = tuple(Pair(*pair.split(":")) for pair in raw["pairs"])
    published = {row: tuple(map(float, values)) for row, values in raw["published"].items()}
    for row, values in published.items():
        if len(values) != len(pairs):
            raise ValueError(f"table {name}, row {row}: {len(values)} numbers for {len(pairs)} pairs")
    return Table(
        name=name,
        title=raw["title"],
        source=raw["source"],
        metric=raw["metric"],
        epoch=raw["epoch"],
        pairs=pairs,
        rows=tuple(row for row in published if row not in ("teacher", "student")),
        published=published,
    )
