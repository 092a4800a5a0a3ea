"""``--set KEY=VALUE``: changes of recipe fields, loss weights and hyper-parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from kdtable.errors import BadRequest, unknown
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule


class Overrides:
    """The changes; every one must apply somewhere, or the request is refused."""

    #: Set by options of their own, or with a form that a single value cannot give.
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
            self._values[key] = value
        self._unused = set(self._values)
        self._known: set[str] = set()

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe with the changes of its fields."""
        fields = [name for name in Recipe.__dataclass_fields__ if name not in self.RESERVED]
        changes = {name: self._changed(name, getattr(recipe, name)) for name in fields}
        return replace(recipe, **changes)

    def weights(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Loss weights with the changes written ``weight.TERM``."""
        return {term: self._changed(f"weight.{term}", float(weight)) for term, weight in terms.items()}

    def schedules(self, terms: Mapping[str, float], own: Mapping[str, Schedule]) -> dict[str, Schedule]:
        """How weights of terms change over the epochs, with the changes written ``schedule.TERM``."""
        texts = {term: self._changed(f"schedule.{term}", "") for term in terms}
        return {**own, **{term: _schedule(term, text) for term, text in texts.items() if text}}

    def params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Hyper-parameters with their changes."""
        return {name: self._changed(name, value) for name, value in params.items()}

    def check_all_used(self) -> None:
        """Raise `BadRequest` for a change that applied nowhere."""
        if self._unused:
            raise unknown("setting", min(self._unused), self._known)

    def _changed(self, key: str, default: Any) -> Any:
        self._known.add(key)
        if key not in self._values:
            return default
        self._unused.discard(key)
        return _parse(key, self._values[key], default)


def _schedule(term: str, text: str) -> Schedule:
    """A schedule from ``off_until:30,steps:30/60/90,factor:0.9,ramp:20``, of which any part may be left out."""
    try:
        parts = dict(part.split(":") for part in text.split(","))
        steps = tuple(int(step) for step in parts.pop("steps").split("/")) if "steps" in parts else ()
        factor = _finite(float(parts.pop("factor", 1)))
        schedule = Schedule(steps=steps, factor=factor, **{name: int(value) for name, value in parts.items()})
        if min(schedule.off_until, schedule.ramp, factor, *steps) < 0:
            raise ValueError(text)
        return schedule
    except (ValueError, TypeError) as error:
        raise BadRequest(
            f"--set schedule.{term} takes parts of off_until:30,steps:30/60/90,factor:0.9,ramp:20, not '{text}'"
        ) from error


def _parse(key: str, text: str, like: Any) -> Any:
    """``text`` as a value of the type of ``like``."""
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, tuple):
            return tuple(int(part) for part in text.split(","))
        if isinstance(like, float | None):
            return _finite(float(text))
        return type(like)(text)
    except (ValueError, KeyError) as error:
        kind = {bool: "true or false", int: "a whole number", tuple: "numbers like 150,180", str: "a text"}
        raise BadRequest(f"--set {key} takes {kind.get(type(like), 'a number')}, not '{text}'") from error


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(value)
    return value
