"""Papers, each from its TOML file beside this module; a row that a paper lacks comes from another one as a guest."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

from kdtable.data.names import resolve as resolve_data
from kdtable.data.spec import STREAMED, DataSpec
from kdtable.errors import BadRequest, unknown
from kdtable.methods import METHODS, base_name
from kdtable.papers.model import Changes, Row, Table, TableFile, row_changes, table_of
from kdtable.papers.own import OwnRecipe
from kdtable.plugins import Registry
from kdtable.recipes.recipe import Recipe
from kdtable.typed import changes, read

DEFAULT_PAPER = "crd"


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
        on_data: what is different on other kinds of data sets than its own: recipe fields, the recipes of students, and
            fields of rows.
        kind: of data set that it works on now; empty where that is left open.
        reading: how it is read now; "code" for its released code.
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
    readings: Mapping[str, Changes] = field(default_factory=dict)
    on_data: Mapping[str, Changes] = field(default_factory=dict)
    kind: str = ""
    reading: str = "code"

    def on(self, kind: str) -> "Paper":
        """The paper as it works on a kind of data set."""
        changes = self.on_data.get(kind, Changes())
        rows = {
            name: replace(self.rows[name], **own) if name in self.rows else Row(name, **own)
            for name, own in changes.rows.items()
        }
        return replace(
            self,
            recipe=replace(self.recipe, **changes.recipe),
            student_recipes=self.student_recipes if changes.student_recipes is None else changes.student_recipes,
            rows={**self.rows, **rows},
            kind=kind,
        )

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
        rows = {name: row.with_params(changes.rows.get(name, {})) for name, row in self.rows.items()}
        recipe = replace(self.recipe, **changes.recipe)
        return replace(self, recipe=recipe, rows=rows, reading=reading)

    def data_spec(self, name: str | None, image_size: int | None = None, *, skip_unreadable: bool = False) -> DataSpec:
        """A data set, by default the paper's own, with the constants that the paper normalises it by.

        Args:
            name: as the user writes it.
            image_size: of the crops, where images come in many sizes.
            skip_unreadable: leave out images that cannot be read.

        Raises:
            BadRequest: it is not known, or cannot be read.
        """
        found = resolve_data(name or self.data, image_size, skip_unreadable=skip_unreadable)
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
        if name in self.rows:
            return self.rows[name]
        base = base_name(name)
        own, kd = self.rows.get(base), self.rows.get("kd")
        if own is None or kd is None:
            return self._guest(name)
        terms = {**kd.terms, **{term: weight for term, weight in own.terms.items() if term != "ce"}}
        measured = kd.test_loss if own.test_loss is None else own.test_loss
        return replace(own, name=name, terms=terms, params={**kd.params, **own.params}, test_loss=measured)

    def _guest(self, name: str) -> Row:
        """Another paper's row: its weights and hyper-parameters, trained by this paper's recipe from its start."""
        base = base_name(name)
        for other in sorted(names(), key=lambda paper: paper != DEFAULT_PAPER):
            own = load(other)._as_host(self)
            if other != self.name and (name in own.rows or {base, "kd"} <= own.rows.keys()):
                found = own.row(name)
                found = found.with_params(found.as_guest)
                pretrained = "vanilla" in self.rows and self.rows["vanilla"].pretrained
                # Which epoch is reported is a matter of the host's tables.
                return replace(found, recipe={}, test_loss=None, pretrained=pretrained)
        raise unknown(f"row of paper {self.name}", name, [*self.rows, *METHODS])

    def _as_host(self, host: "Paper") -> "Paper":
        """The paper on the data set that ``host`` works on, in its reading where it has that one."""
        # Of photographs all papers that have any know ImageNet's.
        known = host.kind in self.on_data or host.kind not in STREAMED
        own = self.on(host.kind if known else "imagenet")
        return own.read_as(host.reading) if host.reading in self.readings else own


#: Where each paper's TOML lies. Entry points of the group ``kdtable.papers`` join it, each the path of a file.
PAPERS: Final[Registry[Traversable]] = Registry(
    "kdtable.papers",
    {f.name.removesuffix(".toml"): f for f in files("kdtable.papers").iterdir() if f.name.endswith(".toml")},
)


def names() -> list[str]:
    """Names of all papers."""
    return sorted(PAPERS)


@dataclass(frozen=True, slots=True)
class PaperFile:
    """A paper as its TOML has it; see :class:`Paper`."""

    title: str
    data: str
    recipe: Recipe
    rows: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, TableFile] = field(default_factory=dict)
    student_recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1,)
    normalisation: Mapping[str, Mapping[str, tuple[float, float, float]]] = field(default_factory=dict)
    readings: Mapping[str, Changes] = field(default_factory=dict)
    on: Mapping[str, Changes] = field(default_factory=dict)


@lru_cache
def load(name: str) -> Paper:
    """The paper ``name``.

    Raises:
        BadRequest: unknown paper, or one whose file has a wrong name, type or number.
    """
    if name not in PAPERS:
        raise unknown("paper", name, names())
    try:
        return _paper(name, read(PaperFile, tomllib.loads(PAPERS[name].read_text(encoding="utf-8"))))
    except ValueError as error:
        raise BadRequest(f"paper {name}: {error}") from error


def _paper(name: str, raw: PaperFile) -> Paper:
    return Paper(
        name=name,
        title=raw.title,
        data=raw.data,
        recipe=raw.recipe,
        student_recipes=_student_recipes(raw.student_recipes),
        rows={key: Row(key, **found) for key, found in _rows(raw.rows).items()},
        tables={key: table_of(key, table, raw.data) for key, table in raw.tables.items()},
        seeds=raw.seeds,
        normalisation=raw.normalisation,
        readings={reading: replace(own, recipe=_recipe_changes(own.recipe)) for reading, own in raw.readings.items()},
        on_data={
            kind: Changes(
                _recipe_changes(own.recipe),
                None if own.student_recipes is None else _student_recipes(own.student_recipes),
                _rows(own.rows),
            )
            for kind, own in raw.on.items()
        },
    )


def _rows(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, row in raw.items():
        try:
            found[name] = row_changes(row)
        except ValueError as error:
            raise ValueError(f"row {name}: {error}") from None
    return found


def _student_recipes(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {student: _recipe_changes(own) for student, own in raw.items()}


def _recipe_changes(raw: Mapping[str, Any]) -> dict[str, Any]:
    return changes(Recipe, raw, "recipe field")


def defaults(
    paper: str, row: str, pair: tuple[str | None, str], kind: str, epochs: int
) -> tuple[Mapping[str, float], Mapping[str, Any], Mapping[str, Any], Mapping[str, bool]] | None:
    """Loss weights, hyper-parameters, meanings of schedules and starts of a paper's row.

    Args:
        paper: its name.
        row: its name.
        pair: teacher and student.
        kind: of the data set.
        epochs: of the main stage, to which the schedules are scaled.

    Returns:
        ``None`` where paper or row is not known.
    """
    try:
        chosen = load(paper).on(kind)
        own = chosen.row(row)
    except BadRequest:
        return None
    full = replace(chosen.recipe, **own.recipe).epochs
    changing = {term: schedule.scaled(epochs, full).identity() for term, schedule in own.schedules.items()}
    schedules = {term: found for term, found in changing.items() if found}
    start = {"from_teacher": own.from_teacher} if "{teacher}" in own.student else {"pretrained": own.pretrained}
    return own.terms_for(*pair), own.params_for(pair[1]), schedules, start


def own_recipe(paper: str, row: str, kind: str, student: str = "") -> OwnRecipe | None:
    """What is a row's own in its recipe for a student; ``None`` where that is nothing, or is not known."""
    try:
        chosen = load(paper).on(kind)
        changes = chosen.row(row).recipe
    except BadRequest:
        return None
    return OwnRecipe(chosen.recipe_for(student), changes) if changes else None


def shared_recipe(paper: str, row: str, recipe: Mapping[str, Any], kind: str, student: str = "") -> Mapping[str, Any]:
    """A stored recipe with what is the row's own put back to what the paper's other rows have for the student.

    So rows of one table may be told from rows of another by it.
    """
    own = own_recipe(paper, row, kind, student)
    return recipe if own is None else own.put_back(Recipe.from_mapping(recipe)).identity()


def find_table(name: str) -> tuple[Paper, Table]:
    """The table ``name`` and its paper.

    Raises:
        BadRequest: no paper has such a table.
    """
    tables = {table: paper for paper in map(load, names()) for table in paper.tables}
    if name not in tables:
        raise unknown("table", name, tables)
    return tables[name], tables[name].tables[name]
