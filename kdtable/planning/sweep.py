"""Plan a sweep: trials of settings, chosen between by held-out training images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final, get_args, get_origin

from kdtable import papers, seeding, tasks
from kdtable.errors import BadRequest
from kdtable.methods import get
from kdtable.methods.objective import Params
from kdtable.methods.ranges import Range, declared
from kdtable.papers import Row
from kdtable.planning.overrides import Overrides
from kdtable.planning.request import Changes, Request
from kdtable.recipes.recipe import Recipe
from kdtable.typed import annotations, parse

#: Between the ends of a range that the user gives: ``lr=0.01..0.2``.
DOTS: Final = ".."

#: Settings of a trial by name, as ``--set`` takes them.
Settings = tuple[tuple[str, str], ...]

#: Of all positive numbers up to it, a seed is drawn from: see `seeding.derive`.
_SEEDS: Final = 2.0**63


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of one method.

    Attributes:
        method: name of the row.
        settings: what the trial changes; empty for the row's own settings.
    """

    method: str
    settings: Settings = ()

    def request(self, asked: Request, fixed: Settings) -> Request:
        """The request of its runs."""
        return replace(asked, methods=[self.method], changes=_changes(asked.changes, (*fixed, *self.settings)))


@dataclass(frozen=True, slots=True)
class Sweep:
    """The trials of a sweep.

    Attributes:
        trials: in order, method by method; as many of each method.
        fixed: by method, what all its trials change.
        varied: by method, names of the settings that its trials choose between, in order.
        ranges: by method, where its settings are drawn from, in words; empty for a grid.
        own: by method, the row's own values of the settings that it declares a range for.
    """

    trials: tuple[Trial, ...]
    fixed: Mapping[str, Settings]
    varied: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, Mapping[str, str]]
    own: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def value(self, trial: Trial, key: str) -> str:
        """A trial's value of a setting, as it is shown; the row's own is marked."""
        given = dict(trial.settings).get(key)
        return given or f"{self.own.get(trial.method, {}).get(key, '')} (own)".strip()

    def check_two_settings(self) -> None:
        """Raise `BadRequest` unless it is a grid of two settings, as a heat map needs."""
        names = next(iter(self.varied.values()))
        if any(self.ranges.values()) or len(names) != 2:
            raise BadRequest(
                "a heat map (--output) needs a grid of two settings, each with several values: leave out --output, or "
                "write --set beta=1,2,4 --set temperature=2,4 without --trials"
            )


def plan_sweep(request: Request, count: int | None) -> Sweep:
    """The trials of a request, whose overrides may name several values.

    Without ``count``, a grid: ``beta=1,2,4`` are three values, and so are three overrides of one setting; a setting
    that is a list or a text has one value each time. With it, a random search: that many trials of each method, the
    first of which has the row's own settings. The others draw every setting from the range that the method declares,
    or from ``lr=0.01..0.2`` of the user; trial 5 is the same whether there are 8 trials or 16.

    Example:
        plan_sweep(Request(["resnet56:resnet20"], ["kd", "at"], [1], data=DataRequest(validation=5000)), 8)

    Raises:
        BadRequest: nothing is held out, there is nothing to choose between, or a setting cannot be read.
    """
    if request.data.validation is None:
        raise BadRequest(
            "a sweep chooses by held-out training images, never by the test set: say how many with --validation N"
        )
    if not request.methods:
        raise BadRequest("a sweep needs the methods to tune: name them with --methods")
    paper = papers.load(request.paper)
    rows = [replace(paper.row(paper.spelled(name)), task=paper.task) for name in request.methods]
    values = _given(request.changes.overrides)
    _check_once(request.changes, values)
    return _grid(rows, values) if count is None else _search(rows, values, count)


def _given(texts: Sequence[str]) -> dict[str, list[str]]:
    """The user's values of each setting, as written."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise BadRequest(f"--set takes KEY=VALUE, not '{text}'")
        found.setdefault(key, []).append(value)
    return found


def _check_once(changes: Changes, values: Mapping[str, Any]) -> None:
    for name in Overrides.RESERVED:
        if name in values and getattr(changes, name) is not None:
            raise BadRequest(f"{name} is given by --{name.replace('_', '-')} and by --set: leave one out")


def _grid(rows: Sequence[Row], given: Mapping[str, list[str]]) -> Sweep:
    values = {key: _values(key, texts, rows) for key, texts in given.items()}
    varied = {key: found for key, found in values.items() if len(found) > 1}
    if not varied:
        raise BadRequest(
            "a sweep needs something to choose between: several values of a setting (--set beta=1,2,4), or --trials N "
            "for a random search"
        )
    _check_equal(varied, rows)
    if ranged := [key for key, found in values.items() if any(DOTS in value for value in found)]:
        raise BadRequest(f"--set {ranged[0]}={given[ranged[0]][0]} is a range for a random search: add --trials N")
    fixed = tuple((key, found[0]) for key, found in values.items() if len(found) == 1)
    settings = [tuple(zip(varied, point, strict=True)) for point in product(*varied.values())]
    return Sweep(
        tuple(Trial(row.name, point) for row in rows for point in settings),
        _of_rows(fixed, rows),
        {row.name: tuple(varied) for row in rows},
        {row.name: {} for row in rows},
    )


def _values(key: str, texts: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The values of a setting; only numbers, names and truth values can be told apart at commas."""
    listed = any(_is_listed(known[key]) for row in rows if key in (known := _known(row)))
    single = key.startswith("schedule.") or listed
    parts = texts if single else [part for text in texts for part in text.split(",")]
    if not all(parts):
        raise BadRequest(f"--set {key}={','.join(texts)} has an empty value: write numbers with commas between them")
    return list(dict.fromkeys(parts))


def _is_listed(annotation: Any) -> bool:
    """Whether a value of this type may have commas: a tuple or a text, or one of these or nothing."""
    kind = getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
    return kind is str or get_origin(kind) is tuple or any(map(_is_listed, get_args(kind) if kind is not str else ()))


def _known(row: Row) -> dict[str, Any]:
    """Types of the settings that a row has, by name."""
    weights = {f"weight.{term}": float for term in row.terms}
    courses = {f"schedule.{term}": str for term in row.terms}
    return {**annotations(Recipe), **weights, **courses, **annotations(get(row.name, row.task).hyper)}


def _search(rows: Sequence[Row], given: Mapping[str, list[str]], count: int) -> Sweep:
    if count < 2:
        raise BadRequest(f"--trials {count} leaves nothing to choose between: use at least 2")
    own, fixed = _split(given, rows)
    trials: list[Trial] = []
    ranges: dict[str, dict[str, str]] = {}
    usual: dict[str, dict[str, str]] = {}
    for row in rows:
        of_row = {**_declared(row), **{key: one for key, one in own.items() if key in _known(row)}}
        of_row = {key: one for key, one in of_row.items() if key not in dict(fixed)}
        if not of_row:
            raise BadRequest(
                f"{row.name} declares no range to search: leave it out, or give it one such as --set lr=0.01..0.2"
            )
        values = {key: _usual(row, key) for key in of_row}
        drawn = [
            {key: _drawn(row, key, one, values[key] or 1.0, n) for key, one in of_row.items()} for n in range(1, count)
        ]
        trials += [Trial(row.name), *(Trial(row.name, tuple(point.items())) for point in drawn)]
        ranges[row.name] = {key: _ends(one, values[key] or 1.0) for key, one in of_row.items()}
        usual[row.name] = {key: f"{value:g}" for key, value in values.items() if value is not None}
    return Sweep(
        tuple(trials), _of_rows(fixed, rows), {name: tuple(found) for name, found in ranges.items()}, ranges, usual
    )


def _split(given: Mapping[str, list[str]], rows: Sequence[Row]) -> tuple[dict[str, Range], Settings]:
    """The user's ranges, and what all trials change."""
    own: dict[str, Range] = {}
    fixed: list[tuple[str, str]] = []
    for key, texts in given.items():
        if DOTS in texts[0]:
            own[key] = _range(key, texts, rows)
        elif len(_values(key, texts, rows)) > 1:
            raise BadRequest(
                f"--set {key}={','.join(texts)} is a grid: leave out --trials, or write a range ({key}=LOW{DOTS}HIGH)"
            )
        else:
            fixed.append((key, texts[0]))
    return own, tuple(fixed)


def _range(key: str, texts: Sequence[str], rows: Sequence[Row]) -> Range:
    known = {name: kind for row in rows for name, kind in _known(row).items()}
    if key not in known:
        raise BadRequest(f"no method of this sweep has a setting '{key}': 'kdtable list methods' shows their names")
    low, _, high = texts[0].partition(DOTS)
    try:
        bounds = [parse(known[key], f"--set {key}", text) for text in (low, high)]
        numbers = [float(bound) for bound in bounds]
    except (ValueError, TypeError) as error:
        raise BadRequest(f"--set {key}={texts[0]} is no range of numbers: {error}") from error
    if len(texts) > 1 or not 0 < numbers[0] < numbers[1]:
        raise BadRequest(
            f"--set {key}={texts[0]}: a range is LOW{DOTS}HIGH, both above 0, since it is searched in ratios"
        )
    return Range(numbers[0], numbers[1], whole=all(isinstance(bound, int) for bound in bounds))


def _declared(row: Row) -> dict[str, Range]:
    """The ranges that a row's method declares, for the settings that the row reads."""
    method = get(row.name, row.task)
    found: dict[str, Range] = {}
    if method.weight_range is not None:
        found |= {f"weight.{term}": method.weight_range for term in _weighted(row)}
    unread = () if "kd" in row.terms else annotations(Params).keys()
    found |= {name: one for name, one in declared(annotations(method.hyper)).items() if name not in unread}
    return found


def _weighted(row: Row) -> list[str]:
    """The terms whose weight is searched: the method's own; without any, those of the task that read the teacher."""
    base = tasks.get(row.task).base_terms
    own = [term for term in row.terms if term not in base]
    return own or [term for term in row.terms if base[term].reads_teacher]


def _usual(row: Row, key: str) -> float | None:
    """The row's own value of a setting; ``None`` for one of the recipe, which depends on the student."""
    if key.startswith("weight."):
        return row.terms[key.removeprefix("weight.")]
    value = row.params.get(key, getattr(get(row.name, row.task).hyper, key, None))
    return float(value) if isinstance(value, int | float) else None


def _drawn(row: Row, key: str, one: Range, own: float, number: int) -> str:
    """A setting of a trial, drawn on its own: it depends on the method, the setting and the number of the trial."""
    return one.at(seeding.derive("search", row.name, key, number) / _SEEDS, own)


def _ends(one: Range, own: float) -> str:
    return f"{one.at(0.0, own)} to {f'{one.high:g}' if one.whole else one.at(1.0, own)}"


def _of_rows(fixed: Settings, rows: Sequence[Row]) -> dict[str, Settings]:
    """The fixed settings of each row: those that it has, and those that no row has, which are refused by name later."""
    known = {row.name: _known(row) for row in rows}
    strange = [key for key, _ in fixed if not any(key in of_row for of_row in known.values())]
    return {
        name: tuple((key, text) for key, text in fixed if key in of_row or key in strange)
        for name, of_row in known.items()
    }


def _check_equal(varied: Mapping[str, list[str]], rows: Sequence[Row]) -> None:
    """Refuse a grid that would give some methods fewer trials than others."""
    for key, values in varied.items():
        without = [row.name for row in rows if key not in _known(row)]
        if without and len(without) < len(rows):
            raise BadRequest(
                f"{without[0]} has no setting '{key}', so the methods would have unequal numbers of trials: sweep them "
                f"one at a time, or search the ranges that they declare with --trials {len(values)}"
            )


def _changes(changes: Changes, settings: Settings) -> Changes:
    """A request's changes with settings by name; some of these have options of their own."""
    values = dict(settings)
    reserved: dict[str, Any] = {}
    for name in Overrides.RESERVED:
        if name in values:
            try:
                reserved[name] = parse(annotations(Recipe)[name], f"--set {name}", values.pop(name))
            except ValueError as error:
                raise BadRequest(str(error)) from error
    return replace(changes, overrides=[f"{key}={value}" for key, value in values.items()], may_repeat=True, **reserved)


def necessary(settings: Settings, plan: Callable[[Settings], object]) -> Settings:
    """The settings without those that state a value that is there: ``kdtable run`` refuses these.

    Args:
        settings: of a trial.
        plan: returns what identifies the runs of settings.
    """
    for one in settings:
        fewer = tuple(other for other in settings if other != one)
        if plan(fewer) == plan(settings):
            settings = fewer
    return settings


def options(settings: Settings) -> Iterator[str]:
    """The words that give ``kdtable run`` these settings."""
    for key, value in settings:
        yield from (f"--{key.replace('_', '-')}", value) if key in Overrides.RESERVED else ("--set", f"{key}={value}")


def in_words(settings: Settings) -> str:
    """Settings as ``--set`` takes them."""
    return ", ".join(f"{key}={value}" for key, value in settings) or "the row's own settings"
