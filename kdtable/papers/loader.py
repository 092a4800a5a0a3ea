"""Load papers from their TOML files. A row that a paper lacks is taken from another paper, as a guest."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

from kdtable.data.names import resolve as resolve_data
from kdtable.data.names import task_of
from kdtable.data.spec import STREAMED, DataSpec
from kdtable.errors import BadRequest, unknown
from kdtable.methods import (
    CLASSIFICATION,
    KD_SUFFIX,
    LS_SUFFIX,
    METHODS,
    ON_TASKS,
    base_name,
    combination_name,
    methods_of,
)
from kdtable.papers.combined import combined_row, standardised, with_kd
from kdtable.papers.model import Changes, Row, Table, TableFile, row_changes, table_of
from kdtable.papers.own import OwnRecipe
from kdtable.plugins import FORGET, Registry
from kdtable.recipes.recipe import Recipe
from kdtable.typed import changes, read

DEFAULT_PAPER = "crd"

#: The paper of a request that names none but a data set of another task.
DEFAULT_PAPERS: Final = {"detection": "detection"}

#: Fields of a row that a method can have where no paper gives it one. The others belong to a paper's recipe.
OF_METHODS: Final = frozenset(("terms", "params", "stages", "schedules", "student_params", "pair_terms"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stated:
    """What a paper has as its file states it."""

    title: str
    data: str
    recipe: Recipe
    task: str = CLASSIFICATION
    seeds: tuple[int, ...] = (1,)
    normalisation: Mapping[str, Mapping[str, tuple[float, float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper(_Stated):
    """A publication whose tables are re-run.

        paper = load("crd").on("cifar100")
        paper.recipe_for("ShuffleV1").lr

    Attributes:
        name: name of its file.
        title: title, and where it was published.
        data: default data set.
        recipe: recipe of the main stage.
        task: name of the task that its students learn.
        student_recipes: student to the recipe fields that differ for it.
        rows: row name to the settings of its method.
        tables: its published tables.
        seeds: seeds that its means are over; prerequisites shared by several runs use the first.
        normalisation: kind of data set to mean and std, where the paper sets its own.
        readings: other readings than the released code, with the recipe fields and parameters they change.
        on_data: changes on other kinds of data sets: recipe fields, student recipes and row fields.
        kind: kind of data set it is applied to; empty if not chosen yet.
        reading: current reading; "code" for the released code.
    """

    name: str
    student_recipes: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Row]
    tables: Mapping[str, Table]
    readings: Mapping[str, Changes] = field(default_factory=dict)
    on_data: Mapping[str, Changes] = field(default_factory=dict)
    kind: str = ""
    reading: str = "code"

    def on(self, kind: str) -> "Paper":
        """The paper on a kind of data set."""
        changes = self.on_data.get(kind, Changes())
        rows = {
            name: replace(self.rows[name], **own) if name in self.rows else Row(name, task=self.task, **own)
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
        """The paper in a reading; "code" is its released code.

        Raises:
            BadRequest: unknown reading.
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
        """A data set, by default the paper's own, with the paper's normalisation.

        Args:
            name: as on the command line.
            image_size: size of crops, for data sets of images of many sizes.
            skip_unreadable: leave out images that cannot be read.

        Raises:
            BadRequest: the data set is unknown or cannot be read.
        """
        found = resolve_data(name or self.data, image_size, skip_unreadable=skip_unreadable)
        own = self.normalisation.get(found.kind)
        return replace(found, mean=own["mean"], std=own["std"]) if own else found

    def recipe_for(self, student: str) -> Recipe:
        """The recipe for a student, with its own fields (such as the learning rate)."""
        return replace(self.recipe, **self.student_recipes.get(student, {}))

    def spelled(self, name: str) -> str:
        """Our spelling of a row's name in any case and order: ``crd+kd`` for ``KD+CRD``; an unknown name as it is."""
        known = {_parts(row): row for row in (*ON_TASKS.get(self.task, METHODS), *self.rows)}
        parts = _parts(name)
        for added in ((), ("kd",), ("ls",), ("kd", "ls")):
            base = list(parts)
            for suffix in set(added) & set(parts):
                base.remove(suffix)
            if len(base) == len(parts) - len(added) and tuple(base) in known:
                return "+".join([known[tuple(base)], *added])
        return combination_name("+".join(known.get((part,), part) for part in parts), self.task) or name

    def row(self, name: str) -> Row:
        """The settings of a method, or of its combination with KD, with logit standardisation, or with other methods.

        Unless the paper lists ``X+kd`` itself, it has the KD row's weights and X's own terms; unless some paper lists
        ``X+ls``, it is X with standardised logits; unless some paper lists ``X+Y``, it has the terms of both
        (:func:`kdtable.papers.combined.combined_row`).

        Raises:
            BadRequest: unknown method.
        """
        if name in self.rows:
            return self.rows[name]
        if self.task in ON_TASKS:
            return self._row_of_task(name)
        base = base_name(name)
        if base not in METHODS and not _is_listed(name):
            kd = self.row("kd") if name.endswith(KD_SUFFIX) else None
            return combined_row(name, {method: self.row(method) for method in methods_of(base)}, kd)
        if name.endswith(LS_SUFFIX):
            return self._guest(name) if _is_listed(name) else standardised(self.row(name.removesuffix(LS_SUFFIX)), name)
        own, kd = self.rows.get(base), self.rows.get("kd")
        if own is not None and kd is not None:
            return with_kd(own, kd, name)
        return (self._declared(name) if METHODS.file(base) else None) or self._guest(name)

    def _row_of_task(self, name: str) -> Row:
        """The row of a method, or of several, of another task than classification."""
        methods = methods_of(name, self.task)
        if len(methods) > 1 and not any(name in paper.rows for paper in self._others()):
            return combined_row(name, {method: self.row(method) for method in methods})
        return self._guest(name)

    def _others(self) -> list["Paper"]:
        """The other papers of this task, those that are searched first for a row in front."""
        found = [load(paper) for paper in sorted(names(), key=lambda paper: paper != DEFAULT_PAPER)]
        found = [paper for paper in found if paper.task == self.task and paper.name != self.name]
        # Detectors' settings depend on the size of the images.
        return found if self.task == CLASSIFICATION else sorted(found, key=lambda paper: paper.data != self.kind)

    def _declared(self, name: str) -> Row | None:
        """The row that the code of a method gives it, as a guest; ``None`` for our own methods, and without one."""
        base = base_name(name)
        if not (settings := METHODS.settings(base)):
            return None
        try:
            own = Row(base, pretrained=self._pretrained, **row_changes(settings))
        except ValueError as error:
            raise BadRequest(f"method {base} has a row that cannot be used: {error}") from error
        return own if name == base else with_kd(own, self.rows.get("kd") or load(DEFAULT_PAPER).rows["kd"], name)

    @property
    def _pretrained(self) -> bool:
        return "vanilla" in self.rows and self.rows["vanilla"].pretrained

    def _guest(self, name: str) -> Row:
        """Another paper's row: its weights and hyper-parameters, with this paper's recipe and initial weights."""
        base = base_name(name, self.task)
        for other in self._others():
            own = other._as_host(self)
            combines = {base, "kd"} <= own.rows.keys() and not name.endswith(LS_SUFFIX)
            if name in own.rows or combines:
                found = own.row(name)
                found = found.with_params(found.as_guest)
                # The host's tables choose the reported epoch.
                return replace(found, recipe={}, test_loss=None, pretrained=self._pretrained)
        if self.task == CLASSIFICATION and (declared := self._declared(name)) is not None:
            return declared
        if self.task == CLASSIFICATION and METHODS.source(base) is not None:
            raise BadRequest(
                f"method '{base}' ({METHODS.where(base)}) has no row: give its weights, terms={{...}}, to "
                "plugins.method, or a row to a paper"
            )
        known = ON_TASKS.get(self.task, METHODS)
        raise unknown(f"row of paper {self.name}", name, [*self.rows, *known], "methods")

    def _as_host(self, host: "Paper") -> "Paper":
        """This paper on the host's kind of data set, in the host's reading if it has that one."""
        # For other image folders, use the paper's settings for ImageNet.
        known = host.kind in self.on_data or host.kind not in STREAMED
        own = self.on(host.kind if known else "imagenet")
        return own.read_as(host.reading) if host.reading in self.readings else own


def _is_listed(name: str) -> bool:
    """Whether some paper on classification has a row of this name."""
    return any(name in load(paper).rows for paper in names() if load(paper).task == CLASSIFICATION)


def _parts(row: str) -> tuple[str, ...]:
    return tuple(sorted(row.lower().replace("_", "-").split("+")))


#: Paper name to its TOML file. Entry points of the group ``kdtable.papers`` add to it, each the path of a file.
PAPERS: Final[Registry[Traversable]] = Registry(
    "kdtable.papers",
    {f.name.removesuffix(".toml"): f for f in files("kdtable.papers").iterdir() if f.name.endswith(".toml")},
)


def names() -> list[str]:
    """Names of all papers."""
    return sorted(PAPERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperFile(_Stated):
    """The content of a paper's TOML file; see :class:`Paper`."""

    rows: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, TableFile] = field(default_factory=dict)
    student_recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    readings: Mapping[str, Changes] = field(default_factory=dict)
    on: Mapping[str, Changes] = field(default_factory=dict)


def default_paper(data: str | None) -> str:
    """Name of the paper whose rows and recipe count where a request names none, for its data set as the user names it.

    A paper that is not there would be an error of the data set's name, which comes later.
    """
    return DEFAULT_PAPERS.get(task_of(data or ""), DEFAULT_PAPER)


@lru_cache
def load(name: str) -> Paper:
    """Load the paper ``name``.

    Raises:
        BadRequest: unknown paper, or an unknown field or wrong value in its file.
    """
    if name not in PAPERS:
        raise unknown("paper", name, names(), "papers")
    return parsed(name, PAPERS[name])


FORGET.append(load.cache_clear)


def parsed(name: str, file: Traversable) -> Paper:
    """The paper that a TOML file states.

    Raises:
        BadRequest: an unknown field or wrong value in the file.
    """
    try:
        return _paper(name, read(PaperFile, tomllib.loads(file.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise BadRequest(f"paper {name}: {error}") from error


def _paper(name: str, raw: PaperFile) -> Paper:
    return Paper(
        **{field.name: getattr(raw, field.name) for field in fields(_Stated)},
        name=name,
        student_recipes=_student_recipes(raw.student_recipes),
        rows={key: Row(key, task=raw.task, **found) for key, found in _rows(raw.rows).items()},
        tables={key: table_of(key, table, raw.data) for key, table in raw.tables.items()},
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
    """Loss weights, hyper-parameters, schedules and initial weights of a paper's row, as identities hold them.

    Args:
        paper: its name.
        row: its name.
        pair: teacher and student.
        kind: kind of data set.
        epochs: epochs of the main stage, which schedules are scaled to.

    Returns:
        ``None`` for an unknown paper or row.
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
    return own.terms_for(*pair), own.params_for(pair[1], pair[0]), schedules, start


def own_recipe(paper: str, row: str, kind: str, student: str = "") -> OwnRecipe | None:
    """The recipe changes of a row, for a student; ``None`` if there are none, or paper or row is unknown."""
    try:
        chosen = load(paper).on(kind)
        changes = chosen.row(row).recipe
    except BadRequest:
        return None
    return OwnRecipe(chosen.recipe_for(student), changes) if changes else None


def find_table(name: str) -> tuple[Paper, Table]:
    """Find the paper of the table ``name``, and the table.

    Raises:
        BadRequest: unknown table.
    """
    tables: list[str] = []
    for paper in map(load, names()):
        if name in paper.tables:
            return paper, paper.tables[name]
        tables += paper.tables
    raise unknown("table", name, tables, "tables")
