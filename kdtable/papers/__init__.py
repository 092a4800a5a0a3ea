"""Papers as data: recipe, pairs, rows and published numbers, each in one TOML file beside this module."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Any

from kdtable.data.spec import DataSpec
from kdtable.data.spec import resolve as resolve_data
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
        recipe: fields of the paper's recipe that are the row's own.
        student: of the networks ``{teacher}`` and ``{student}`` of a pair, what this row trains.
        taught_by: the row that trains this row's teacher; the pair's own teacher where it is empty.
        assistant: student of the row ``taught_by``, by data set; without one it is the pair's teacher itself.
        from_teacher: whether what is trained starts from the weights of the pair's teacher.
    """

    name: str
    terms: Mapping[str, float]
    params: Mapping[str, Any]
    stages: Mapping[str, int] = field(default_factory=dict)
    student_params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    student: str = "{student}"
    taught_by: str = ""
    assistant: Mapping[str, str] = field(default_factory=dict)
    from_teacher: bool = False

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
        data: the data set that it is on.
        metric: what its cells hold, in percent.
        epoch: "last" or "best": which epoch's accuracy is reported.
        pairs: its columns.
        rows: its method rows, top to bottom; the teacher's and the student's come before them.
        published: row name ("teacher" and "student" included) to one value per pair: NaN where the paper says N/A,
            ``None`` where what it says could not be read.
    """

    name: str
    title: str
    source: str
    data: str
    metric: str
    epoch: str
    pairs: tuple[Pair, ...]
    rows: tuple[str, ...]
    published: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True)
class Paper:
    """A publication whose tables are re-run.

    Attributes:
        name: of its file.
        title: with where it appeared.
        data: the data set that is meant where none is named.
        recipe: of a main stage.
        student_recipes: fields of it that are a student's own.
        rows: settings of its methods.
        tables: as they were published.
        seeds: that its means are over; what several runs need first is trained with the first of them.
        normalisation: mean and std of the images of a data set, where they are the paper's own.
        readings: other ways to read it than its released code, each with the recipe fields and parameters that change.
    """

    name: str
    title: str
    data: str
    recipe: Recipe
    student_recipes: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Row]
    tables: Mapping[str, Table]
    seeds: tuple[int, ...] = (1,)
    normalisation: Mapping[str, Mapping[str, tuple[float, float, float]]] = field(default_factory=dict)
    readings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def read_as(self, reading: str) -> "Paper":
        """The paper in another reading than its released code ("code").

        Raises:
            BadRequest: it has no such reading.
        """
        if reading == "code":
            return self
        if reading not in self.readings:
            raise unknown(f"reading of paper {self.name}", reading, ["code", *self.readings])
        changes = self.readings[reading]
        own = changes.get("rows", {})
        rows = {name: replace(row, params={**row.params, **own.get(name, {})}) for name, row in self.rows.items()}
        return replace(self, recipe=replace(self.recipe, **changes.get("recipe", {})), rows=rows)

    def data_spec(self, name: str | None) -> DataSpec:
        """A data set, by default the paper's own, with the constants that the paper normalises it by.

        Raises:
            BadRequest: it is not known, or cannot be read.
        """
        found = resolve_data(name or self.data)
        own = self.normalisation.get(found.kind)
        return replace(found, mean=own["mean"], std=own["std"]) if own else found

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
        tables={key: _table(key, {"data": raw["data"], **table}) for key, table in raw.get("tables", {}).items()},
        seeds=tuple(raw.get("seeds", [1])),
        normalisation={
            data: {name: (red, green, blue) for name, (red, green, blue) in constants.items()}
            for data, constants in raw.get("normalisation", {}).items()
        },
        readings=raw.get("readings", {}),
    )


def defaults(paper: str, row: str, student: str) -> tuple[Mapping[str, float], Mapping[str, Any]] | None:
    """Loss weights and hyper-parameters of a paper's row for a student; ``None`` where either is not known."""
    try:
        own = load(paper).row(row)
    except BadRequest:
        return None
    return own.terms, own.params_for(student)


def shared_recipe(paper: str, row: str, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored recipe with what is the row's own put back to what the paper's other rows have.

    So rows of one table may be told from rows of another by it.
    """
    try:
        chosen = load(paper)
        own = chosen.row(row).recipe
    except BadRequest:
        return recipe
    whole = Recipe.from_mapping(recipe)
    changes = {key: getattr(chosen.recipe, key) for key, value in own.items() if getattr(whole, key) == value}
    return replace(whole, **changes).meaning()


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
    # TOML has no null: an empty list stands for a row that could not be read, an empty text for a cell.
    published = {
        row: tuple(None if value == "" else float(value) for value in values) or (None,) * len(pairs)
        for row, values in raw["published"].items()
    }
    for row, values in published.items():
        if len(values) != len(pairs):
            raise ValueError(f"table {name}, row {row}: {len(values)} numbers for {len(pairs)} pairs")
    return Table(
        name=name,
        title=raw["title"],
        source=raw["source"],
        data=raw["data"],
        metric=raw["metric"],
        epoch=raw["epoch"],
        pairs=pairs,
        rows=tuple(row for row in published if row not in ("teacher", "student")),
        published=published,
    )
