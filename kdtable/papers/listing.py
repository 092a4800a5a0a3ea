"""Settings of papers' rows, in words and as data, as ``kdtable run`` uses them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from kdtable.data.spec import STREAMED
from kdtable.methods import METHODS, ON_TASKS
from kdtable.papers.loader import DEFAULT_PAPER, Paper, load
from kdtable.papers.model import Row
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule

#: A row's loss, and the lines of its settings.
Words = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class View:
    """A paper on a kind of data set."""

    paper: Paper

    @property
    def rows(self) -> dict[str, Row]:
        """The paper's rows, and rows of other papers in its tables on the data set."""
        tables = [table for table in self.paper.tables.values() if table.data == self.paper.kind]
        names = [*self.paper.rows, *(name for table in tables for name in table.trained)]
        return {name: self.paper.row(name) for name in names}

    def words(self) -> dict[str, Words]:
        """Its rows in words, by name."""
        return {name: (_loss(row.terms), tuple(self._settings(row))) for name, row in self.rows.items()}

    def _settings(self, row: Row) -> Iterator[str]:
        yield from _settings(row, self.paper.kind)
        if row.name not in self.paper.rows:
            yield "of another paper"

    def recipe(self) -> str:
        """Its recipe in words, with the field names that ``--set`` takes."""
        own = [f"; students {', '.join(names)}: {text}" for text, names in _grouped(self.paper.student_recipes)]
        return _values(self._recipe(self.paper.recipe).identity()) + "".join(own)

    def objects(self) -> list[dict[str, Any]]:
        """Its rows as data, for JSON."""
        return [self._object(row) for row in self.rows.values()]

    def _object(self, row: Row) -> dict[str, Any]:
        return {
            "row": row.name,
            "paper": self.paper.name,
            "data": self.paper.kind,
            "weights": dict(row.terms),
            "weights by pair": row.pair_terms,
            "schedules": {term: schedule.identity() for term, schedule in row.schedules.items()},
            "hyper-parameters": dict(row.params),
            "hyper-parameters by student": row.student_params,
            "test loss": row.test_loss,
            "earlier stages (epochs)": dict(row.stages),
            "recipe": self._recipe(replace(self.paper.recipe, **row.recipe)).full_identity(),
            "recipe by student": self.paper.student_recipes,
            "own recipe": dict(row.recipe),
            "trains": _trained(row),
            "starts from": _start(row),
            "taught by row": row.taught_by or None,
            "assistant": row.assistant.get(self.paper.kind),
            "readings": {
                reading: {"recipe": own.recipe, "hyper-parameters": own.rows.get(row.name, {})}
                for reading, own in self.paper.readings.items()
            },
        }

    def _recipe(self, recipe: Recipe) -> Recipe:
        return recipe.for_image_folders() if self.paper.kind in STREAMED else recipe


def views(paper: Paper, kind: str | None) -> list[View]:
    """A paper on a kind of data set; by default on its own, then on every other that it covers."""
    others = (table.data for table in paper.tables.values())
    kinds = [kind] if kind else dict.fromkeys([paper.data, *paper.on_data, *others])
    return [View(paper.on(kind)) for kind in kinds]


@dataclass(frozen=True, slots=True)
class Plugged(View):
    """The rows that plug-ins' files give to their methods, as guests of a paper."""

    @property
    def rows(self) -> dict[str, Row]:
        """Rows by name."""
        stated = [name for name in METHODS if METHODS.file(name) and METHODS.settings(name)]
        return {name: self.paper.row(name) for name in stated if name not in self.paper.rows}

    def _settings(self, row: Row) -> Iterator[str]:
        yield from _settings(row, self.paper.kind)
        yield f"of the plug-in {METHODS.file(row.name)}"


def plugged(kind: str | None) -> Plugged:
    """The rows of plug-ins, as guests of the default paper."""
    paper = load(DEFAULT_PAPER)
    return Plugged(paper.on(kind or paper.data))


def objects(papers: Iterable[Paper], kind: str | None) -> list[dict[str, Any]]:
    """All rows of papers and plug-ins as data, in the reading of the released code."""
    rows = [row for paper in papers for view in views(paper, kind) for row in view.objects()]
    return rows + plugged(kind).objects()


def _settings(row: Row, kind: str) -> Iterator[str]:
    """A row's settings beside its loss, a line each."""
    if row.params:
        yield _values(row.params)
    if row.test_loss is not None:
        yield _values({"test_loss": row.test_loss})
    for text, names in _grouped(row.student_params):
        yield f"{'pairs' if ':' in names[0] else 'students'} {', '.join(names)}: {text}"
    for text, names in _grouped(row.pair_terms, _loss):
        yield f"{text} for {', '.join(names)}"
    yield from (f"weight of {term}: {schedule_words(schedule)}" for term, schedule in row.schedules.items())
    yield from (
        f"{'linear probe' if stage == 'main' else f'stage before: {stage}'}, {n} epoch{'s' * (n != 1)}"
        for stage, n in row.stages.items()
        if n
    )
    if row.recipe:
        yield f"recipe: {_values(row.recipe)}"
    if row.student != "{student}":
        yield f"trains: {_trained(row)}"
    if start := _start(row):
        yield f"starts from: {start}"
    if row.taught_by:
        yield f"taught by: row {row.taught_by}" + _assistant(row, kind)


def _assistant(row: Row, kind: str) -> str:
    if not row.assistant:
        return ""
    own = f"{row.assistant[kind]} if it is, else " if kind in row.assistant else ""
    return f"'s student, an assistant between the two in depth ({own}the nearest to the middle)"


def _trained(row: Row) -> str:
    return row.student.format(teacher="TEACHER", student="STUDENT")


def _start(row: Row) -> str | None:
    if row.from_teacher:
        return "the teacher's weights"
    return "ImageNet weights" if row.pretrained else None


def combined(paper: Paper) -> Iterator[str]:
    """Describe ``X+kd``, ``X+Y`` and ``X+ls``, which :meth:`kdtable.papers.Paper.row` makes."""
    if paper.task in ON_TASKS:
        yield "X+Y (fitnet+kd, dkd+reviewkd): the task's own losses and the terms of each; settings are X.NAME"
        return
    # The methods' classes know which ones these are, but importing them needs torch.
    if "kd" in paper.rows:
        loss = _loss(paper.rows["kd"].terms)
        yield (
            f"X+kd: {loss} + X's own terms, and the settings of both, for every X that has a teacher and no soft "
            "targets of its own"
        )
    yield "X+Y (at+crd, at+crd+kd): cross-entropy and the terms of each, at their own weights; settings are X.NAME"
    yield "X+ls: X with the logits of its soft targets standardised, for kd, every X+kd, and methods on logits alone"


def readings(paper: Paper) -> Iterator[str]:
    """Describe what ``--reading`` changes, a line for each reading (:meth:`kdtable.papers.Paper.read_as`)."""
    for reading, changes in paper.readings.items():
        recipe = [_values(changes.recipe)] if changes.recipe else []
        rows = [f"{', '.join(names)}: {text}" for text, names in _grouped(changes.rows)]
        yield f"With --reading {reading}: {'; '.join([*recipe, *rows])}"


def _loss(terms: Mapping[str, float]) -> str:
    return " + ".join(f"{_value(weight)} {term}" for term, weight in terms.items())


def schedule_words(schedule: Schedule) -> str:
    """Describe how a weight changes, as :meth:`kdtable.recipes.schedule.Schedule.at` computes it."""
    parts = []
    if schedule.off_until:
        parts.append(f"off up to epoch {schedule.off_until}")
    if schedule.ramp:
        parts.append(f"rises from 0 in epoch 1 to its full value in epoch {schedule.ramp + 1}")
    if schedule.warmup:
        parts.append(f"rises from 1/{schedule.warmup} in epoch 1 to its full value in epoch {schedule.warmup}")
    if schedule.steps:
        parts.append(f"times {_value(schedule.factor)} at the start of epochs {', '.join(map(str, schedule.steps))}")
    return ", ".join(parts) or "constant"


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value) or "''"


def _grouped(
    changes: Mapping[str, Mapping[str, Any]], describe: Callable[[Mapping[str, Any]], str] = _values
) -> Iterator[tuple[str, list[str]]]:
    """Changes in words, and their patterns. Only neighbours are grouped, since the last matching pattern wins."""
    for text, names in groupby(changes, key=lambda name: describe(changes[name])):
        yield text, list(names)
