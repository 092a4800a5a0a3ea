"""Papers as data: recipe, pairs, rows and published numbers, each in one TOML file beside this module."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Any

from kdtable.data.spec import STREAMED, DataSpec
from kdtable.data.spec import resolve as resolve_data
from kdtable.errors import BadRequest, unknown
from kdtable.methods import METHODS, base_name
from kdtable.metrics import accuracy_of, converted, metric_of
from kdtable.papers.own import OwnRecipe
from kdtable.recipe import Recipe
from kdtable.schedule import Schedule

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
        schedules: how weights change over the epochs of the main stage at the paper's full length, by term.
        pretrained: whether the student starts from weights that were published for ImageNet.
        pair_terms: weights of terms for pairs that fit a pattern (``*:ShuffleV2``), of several the last one's.
        as_guest: hyper-parameters that are part of the row's own recipe, as they are under another paper's.
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
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    pretrained: bool = False
    pair_terms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    as_guest: Mapping[str, Any] = field(default_factory=dict)

    def terms_for(self, teacher: str | None, student: str) -> dict[str, float]:
        """Loss weights for a pair (canonical names), in the order of addition."""
        own = [terms for pattern, terms in self.pair_terms.items() if fnmatchcase(f"{teacher}:{student}", pattern)]
        return {key: value for terms in (self.terms, *own) for key, value in terms.items()}

    def with_params(self, params: Mapping[str, Any]) -> "Row":
        """The row with other hyper-parameters, for all students."""
        others = {
            pattern: {key: value for key, value in own.items() if key not in params}
            for pattern, own in self.student_params.items()
        }
        return replace(self, params={**self.params, **params}, student_params=others)

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
        metrics: what its cells hold, by the names of :data:`kdtable.metrics.METRICS`.
        epoch: of which epoch's accuracy is reported: one of :data:`kdtable.metrics.EPOCHS`.
        pairs: its columns.
        rows: its method rows, top to bottom; the teacher's and the student's come before them.
        published_only: rows whose methods we lack, or that are not trained by the table's recipe.
        published: row name ("teacher" and "student" included) to one value for each metric of each pair, pair by pair:
            NaN where the paper says N/A, ``None`` where what it says could not be read.
    """

    name: str
    title: str
    source: str
    data: str
    metrics: tuple[str, ...]
    epoch: str
    pairs: tuple[Pair, ...]
    rows: tuple[str, ...]
    published: Mapping[str, tuple[float | None, ...]]
    published_only: tuple[str, ...] = ()

    @property
    def trained(self) -> tuple[str, ...]:
        """The rows that we can train, the plain student first."""
        return ("vanilla", *(row for row in self.rows if row not in self.published_only))

    def printed_as(self, metric: str) -> str | None:
        """The table's own metric from which ``metric`` follows; ``None`` where nothing of it was published."""
        same = [own for own in self.metrics if accuracy_of(own) == accuracy_of(metric)]
        return metric if metric in same else next(iter(same), None)

    def printed(self, row: str, column: int, metric: str) -> float | None:
        """The published number of a row for the pair of the number ``column``, as ``metric``.

        Returns:
            NaN where the paper says N/A; ``None`` where it has no number, or none that could be read.
        """
        own = self.printed_as(metric)
        if own is None or row not in self.published:
            return None
        value = self.published[row][column * len(self.metrics) + self.metrics.index(own)]
        return None if value is None else converted(value, own, metric)


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
    readings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    on_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kind: str = ""
    reading: str = "code"

    def on(self, kind: str) -> "Paper":
        """The paper as it works on a kind of data set."""
        changes = self.on_data.get(kind, {})
        rows = {name: _row(name, {**_raw(self.rows.get(name)), **own}) for name, own in changes.get("rows", {}).items()}
        return replace(
            self,
            recipe=replace(self.recipe, **_tuples(changes.get("recipe", {}))),
            student_recipes=changes.get("student_recipes", self.student_recipes),
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
        own = changes.get("rows", {})
        rows = {name: row.with_params(own.get(name, {})) for name, row in self.rows.items()}
        recipe = replace(self.recipe, **changes.get("recipe", {}))
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
        return replace(own, name=name, terms=terms, params={**kd.params, **own.params})

    def _guest(self, name: str) -> Row:
        """Another paper's row: its weights and hyper-parameters, trained by this paper's recipe from its start."""
        base = base_name(name)
        for other in sorted(names(), key=lambda paper: paper != DEFAULT_PAPER):
            own = load(other)._as_host(self)
            if other != self.name and (name in own.rows or {base, "kd"} <= own.rows.keys()):
                found = own.row(name)
                found = found.with_params(found.as_guest)
                # Which epoch is reported is a matter of the host's tables.
                params = {key: value for key, value in found.params.items() if key != "test_objective"}
                pretrained = "vanilla" in self.rows and self.rows["vanilla"].pretrained
                return replace(found, recipe={}, params=params, pretrained=pretrained)
        raise unknown(f"row of paper {self.name}", name, [*self.rows, *METHODS])

    def _as_host(self, host: "Paper") -> "Paper":
        """The paper on the data set that ``host`` works on, in its reading where it has that one."""
        # Of photographs all papers that have any know ImageNet's.
        known = host.kind in self.on_data or host.kind not in STREAMED
        own = self.on(host.kind if known else "imagenet")
        return own.read_as(host.reading) if host.reading in self.readings else own


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
        student_recipes={name: _tuples(own) for name, own in raw.get("student_recipes", {}).items()},
        rows={key: _row(key, row) for key, row in raw["rows"].items()},
        tables={key: _table(key, {"data": raw["data"], **table}) for key, table in raw.get("tables", {}).items()},
        seeds=tuple(raw.get("seeds", [1])),
        normalisation={
            data: {name: (red, green, blue) for name, (red, green, blue) in constants.items()}
            for data, constants in raw.get("normalisation", {}).items()
        },
        readings=raw.get("readings", {}),
        on_data=raw.get("on", {}),
    )


def _row(name: str, raw: Mapping[str, Any]) -> Row:
    schedules = {term: Schedule.from_mapping(values) for term, values in raw.get("schedules", {}).items()}
    own = {"recipe": _tuples(raw.get("recipe", {})), "schedules": schedules}
    return Row(**{"params": {}, **raw, "name": name, **own})


def _raw(row: Row | None) -> dict[str, Any]:
    """A row as its TOML table had it."""
    if row is None:
        return {}
    schedules = {term: schedule.meaning() for term, schedule in row.schedules.items()}
    return {field.name: getattr(row, field.name) for field in fields(row)} | {"schedules": schedules}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


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
    changing = {term: schedule.scaled(epochs, full).meaning() for term, schedule in own.schedules.items()}
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
    return recipe if own is None else own.put_back(Recipe.from_mapping(recipe)).meaning()


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
    metrics = tuple(metric_of(text) for text in raw.get("metrics") or [raw["metric"]])
    count = len(pairs) * len(metrics)
    # TOML has no null: an empty list stands for a row that could not be read, an empty text for a cell.
    published = {
        row: tuple(None if value == "" else float(value) for value in values) or (None,) * count
        for row, values in raw["published"].items()
    }
    for row, values in published.items():
        if len(values) != count:
            each = f" and {len(metrics)} metrics" if len(metrics) > 1 else ""
            raise ValueError(f"table {name}, row {row}: {len(values)} numbers for {len(pairs)} pairs{each}")
    if lost := set(raw.get("published_only", ())) - published.keys():
        raise ValueError(f"table {name}: {', '.join(sorted(lost))} is published only, but has no numbers")
    return Table(
        name=name,
        title=raw["title"],
        source=raw["source"],
        data=raw["data"],
        metrics=metrics,
        epoch=raw["epoch"],
        pairs=pairs,
        rows=tuple(row for row in published if row not in ("teacher", "student")),
        published=published,
        published_only=tuple(raw.get("published_only", ())),
    )
