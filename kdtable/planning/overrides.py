"""``--set KEY=VALUE``: changes of recipe fields, loss weights and hyper-parameters."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, TypeVar

from annotated_types import Ge

from kdtable.errors import BadRequest, unknown
from kdtable.methods.objective import Params
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from kdtable.typed import annotations, parse

T = TypeVar("T")

#: Our names of settings that papers and released code write as symbols.
SYMBOLS: Final = {"t": "kd_temperature", "temperature": "kd_temperature", "alpha": "weight.kd", "gamma": "weight.ce"}

_Weight = Annotated[float, Ge(0)]


class Overrides:
    """Parsed ``--set`` options; each must apply somewhere, or the request is refused.

    Example:
        ``Overrides(["weight_decay=1e-4"]).recipe(paper.recipe)``
    """

    #: Keys with options of their own.
    RESERVED = ("epochs", "batch_size", "lr")

    def __init__(self, texts: Sequence[str]) -> None:
        self._values: dict[str, str] = {}
        self._unused: set[str] = set()
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals or not key or not value:
                raise BadRequest(f"--set takes KEY=VALUE, not '{text}'")
            if key in self.RESERVED:
                raise BadRequest(f"use --{key.replace('_', '-')} to set {key}")
            if self._values.get(key, value) != value:
                raise BadRequest(f"--set {key} is given as {self._values[key]} and as {value}: leave one out")
            self._values[key] = value
        self._unused = set(self._values)
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the user gives this key."""
        return key in self._values

    def recipe(self, recipe: Recipe) -> Recipe:
        """Apply the overrides of recipe fields."""
        fields = {name: kind for name, kind in annotations(Recipe).items() if name not in self.RESERVED}
        return replace(recipe, **self._found(fields))

    def weights(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Apply overrides of loss weights, written ``weight.TERM``."""
        return {term: self.value(f"weight.{term}", _Weight, float(weight)) for term, weight in terms.items()}

    def schedules(self, terms: Iterable[str], own: Mapping[str, Schedule]) -> dict[str, Schedule]:
        """Apply overrides of weight schedules, written ``schedule.TERM``."""
        texts = {term: self.value(f"schedule.{term}", str, "") for term in terms}
        return {**own, **{term: _schedule(term, text) for term, text in texts.items() if text}}

    def params(self, kind: type[Params], stated: Mapping[str, Any], terms: Collection[str]) -> dict[str, Any]:
        """Apply overrides of hyper-parameters.

        Args:
            kind: the method's hyper-parameters.
            stated: values that its row states.
            terms: names of its loss terms: without ``kd``, hyper-parameters of KD are accepted only if the row states
                them.
        """
        unread = () if "kd" in terms else annotations(Params).keys() - stated.keys()
        return {**stated, **self._found({n: a for n, a in annotations(kind).items() if n not in unread})}

    def check_all_used(self) -> None:
        """Raise `BadRequest` for an override that applied nowhere."""
        if self._unused:
            first = min(self._unused)
            if (ours := SYMBOLS.get(first.lower())) in self._known:
                raise BadRequest(f"unknown setting '{first}': here it is called {ours}")
            raise unknown("setting", first, self._known, "methods")

    def value(self, key: str, annotation: Any, default: T) -> T:
        """The override of one key, or ``default``."""
        found: T = self._found({key: annotation}).get(key, default)
        return found

    def _found(self, annotations: Mapping[str, Any]) -> dict[str, Any]:
        """The overrides of the keys in ``annotations``, parsed by their annotations."""
        self._known |= annotations.keys()
        changed = [key for key in annotations if key in self._values]
        self._unused -= set(changed)
        try:
            return {key: parse(annotations[key], f"--set {key}", self._values[key]) for key in changed}
        except ValueError as error:
            raise BadRequest(str(error)) from error


def _schedule(term: str, text: str) -> Schedule:
    """Parse a schedule such as ``off_until:30,steps:30/60/90,factor:0.9,ramp:20,warmup:20``; each part is optional."""
    try:
        parts = dict(part.split(":") for part in text.split(","))
        known = annotations(Schedule)
        return Schedule(**{n: parse(known[n], n, value.replace("/", ",")) for n, value in parts.items()})
    except (ValueError, KeyError) as error:
        raise BadRequest(
            f"--set schedule.{term} takes parts of off_until:30,steps:30/60/90,factor:0.9,ramp:20,warmup:20, "
            f"not '{text}'"
        ) from error
