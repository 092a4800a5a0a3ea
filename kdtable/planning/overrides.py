"""``--set [PAIR/]KEY=VALUE``: changes of recipe fields, loss weights and hyper-parameters."""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, TypeVar

from annotated_types import Ge, Gt

from kdtable import models
from kdtable.errors import BadRequest, unknown
from kdtable.methods.objective import Params, defaults, settable
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import CONSTANT, Schedule
from kdtable.typed import annotations, parse

T = TypeVar("T")

#: Our names of settings that papers and released code write as symbols.
SYMBOLS: Final = {"t": "kd_temperature", "temperature": "kd_temperature", "alpha": "weight.kd", "gamma": "weight.ce"}

_Weight = Annotated[float, Ge(0)]
#: A pattern of pairs, "" for all, and the name of a setting.
_Key = tuple[str, str]


class Overrides:
    """Parsed ``--set`` options; each must apply somewhere and change something, or the request is refused.

    Example:
        ``Overrides(["weight_decay=1e-4"]).recipe(paper.recipe)``
    """

    #: Keys with options of their own.
    RESERVED = ("epochs", "iterations", "batch_size", "lr")

    def __init__(self, texts: Sequence[str]) -> None:
        self._values: dict[_Key, str] = {}
        self._pair = ""
        for text in texts:
            written, equals, value = text.partition("=")
            if not equals or not written or not value:
                raise BadRequest(f"--set takes KEY=VALUE, not '{text}'")
            key = _key(written)
            if key[1] in self.RESERVED:
                raise BadRequest(f"use --{key[1].replace('_', '-')} to set {key[1]}")
            if self._values.get(key, value) != value:
                raise BadRequest(f"--set {written} is given as {self._values[key]} and as {value}: leave one out")
            self._values[key] = value
        self._unused = set(self._values)
        self._unchanged = set(self._values)
        self._unmatched = {pattern for pattern, _ in self._values if pattern}
        self._known: set[str] = set()
        self._for_all: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the user gives this key, for any pair."""
        return any(name == key for _, name in self._values)

    def on(self, teacher: str, student: str) -> "Overrides":
        """The overrides of a pair: those for all, and those for pairs like it."""
        found = copy.copy(self)  # shares what is noted of each override
        found._pair = f"{teacher}:{student}"
        self._unmatched -= {pattern for pattern in self._unmatched if fnmatchcase(found._pair, pattern)}
        return found

    def recipe(self, recipe: Recipe, fixed: Collection[str] = ()) -> Recipe:
        """Apply the overrides of recipe fields; those of ``fixed`` change nothing."""
        kinds = {name: kind for name, kind in annotations(Recipe).items() if name not in self.RESERVED}
        current = {one.name: getattr(recipe, one.name) for one in fields(recipe)}
        found = self._found(kinds, current, fixed=fixed, for_pairs=False)
        return replace(recipe, **found)

    def weights(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Apply overrides of loss weights, written ``weight.TERM``."""
        own = {f"weight.{term}": float(weight) for term, weight in terms.items()}
        found = own | self._found(dict.fromkeys(own, _Weight), own)
        return {term: found[f"weight.{term}"] for term in terms}

    def schedules(self, terms: Iterable[str], own: Mapping[str, Schedule], epochs: int = 1) -> dict[str, Schedule]:
        """Apply overrides of weight schedules, written ``schedule.TERM``.

        Args:
            terms: names of all terms.
            own: the row's schedules, of ``epochs`` epochs.
            epochs: of the main stage, to which a schedule with ``of:N`` is scaled.
        """
        found = dict(own)
        for term in terms:
            key = f"schedule.{term}"
            texts = self._found({key: str})
            if key in texts:
                found[term] = _schedule(term, texts[key], epochs)
                self._note(key, found[term] != own.get(term, CONSTANT))
        return found

    def params(
        self, kind: type[Params], stated: Mapping[str, Any], terms: Collection[str], method: str = ""
    ) -> dict[str, Any]:
        """Apply overrides of hyper-parameters, written ``NAME`` or ``METHOD.NAME``.

        Args:
            kind: the method's hyper-parameters.
            stated: values that its row states.
            terms: names of its loss terms: without ``kd``, hyper-parameters of KD are accepted only if the row states
                them.
            method: its registered name.
        """
        unread = () if "kd" in terms else annotations(Params).keys() - stated.keys()
        read = {name: annotation for name, annotation in settable(kind).items() if name not in unread}
        current = {**defaults(kind), **stated}
        found = dict(stated)
        for written, names in _spellings(read, method).items():
            if len(names) > 1 and self._chosen(written):
                raise BadRequest(f"--set {written} could be any of {', '.join(names)}: write the one that is meant")
            values = self._found({written: read[names[0]]}, {written: current[names[0]]}, known=written in read)
            if written in values:
                found[names[0]] = values[written]
        return found

    def check_all_used(self, *, may_repeat: bool = False) -> None:
        """Raise `BadRequest` for an override that applied nowhere, or, unless it may, that changed nothing."""
        if self._unused:
            pattern, first = min(self._unused)
            if first in self._for_all:
                raise BadRequest(f"--set {pattern}/{first}: all pairs share {first}, so leave out {pattern}/")
            if pattern in self._unmatched:
                raise BadRequest(f"--set {pattern}/{first}: no pair that was asked for is {pattern}")
            if (ours := SYMBOLS.get(first.lower())) in self._known:
                raise BadRequest(f"unknown setting '{first}': here it is called {ours}")
            raise unknown("setting", first, self._known, "methods")
        if self._unchanged and not may_repeat:
            pattern, first = min(self._unchanged)
            written = f"{pattern}/{first}" if pattern else first
            others = [name for _, name in self._values if name.rpartition(".")[2] == first.rpartition(".")[2]]
            why = f"{first} has this value already" if len(others) == 1 else "another --set takes its place"
            raise BadRequest(f"--set {written}={self._values[pattern, first]} changes nothing, as {why}: leave it out")

    def value(self, key: str, annotation: Any, default: T) -> T:
        """The override of one key, which all pairs share, or ``default``."""
        found: T = self._found({key: annotation}, {key: default}, for_pairs=False).get(key, default)
        return found

    def _chosen(self, name: str, *, for_pairs: bool = True) -> _Key | None:
        """The override of a name: the last one for pairs like this one, else that for all."""
        of_pairs = [p for p, key in self._values if key == name and p and fnmatchcase(self._pair, p)]
        patterns = [*([""] if ("", name) in self._values else []), *(of_pairs if for_pairs else ())]
        return (patterns[-1], name) if patterns else None

    def _note(self, name: str, changed: bool) -> None:
        chosen = self._chosen(name)
        if changed and chosen is not None:
            self._unchanged.discard(chosen)

    def _found(
        self,
        kinds: Mapping[str, Any],
        current: Mapping[str, Any] | None = None,
        *,
        fixed: Collection[str] = (),
        for_pairs: bool = True,
        known: bool = True,
    ) -> dict[str, Any]:
        """The overrides of the keys in ``kinds``, parsed by their annotations.

        Args:
            kinds: annotation by key.
            current: values without overrides; without it the caller notes what changed.
            fixed: keys whose override has no effect.
            for_pairs: whether the overrides of single pairs count.
            known: whether errors may suggest the keys.
        """
        self._known.update(kinds if known else ())
        self._for_all.update(() if for_pairs else kinds)
        found = {}
        for name, annotation in kinds.items():
            if (chosen := self._chosen(name, for_pairs=for_pairs)) is None:
                continue
            self._unused -= {key for key in self._unused if key[1] == name and _covers(key[0], self._pair, for_pairs)}
            try:
                found[name] = parse(annotation, f"--set {name}", self._values[chosen])
            except ValueError as error:
                raise BadRequest(str(error)) from error
            if current is not None and name not in fixed and found[name] != current.get(name):
                self._unchanged.discard(chosen)
        return found


def _covers(pattern: str, pair: str, for_pairs: bool) -> bool:
    return not pattern or (for_pairs and fnmatchcase(pair, pattern))


def _key(written: str) -> _Key:
    """``resnet56:resnet20/weight.at`` as a pattern of canonical names, and the setting's name.

    Raises:
        BadRequest: the pair is no pair, or names an unknown network.
    """
    pair, slash, name = written.rpartition("/")
    if not slash:
        return "", name
    teacher, colon, student = pair.partition(":")
    if not (teacher and colon and student and name):
        raise BadRequest(f"--set takes KEY=VALUE, or TEACHER:STUDENT/KEY=VALUE for one pair, not '{written}'")
    return ":".join(one if set("*?[") & set(one) else models.canonical(one) for one in (teacher, student)), name


def _spellings(names: Collection[str], method: str) -> dict[str, list[str]]:
    """How a hyper-parameter may be written, and which ones that means: by its name, or with its method's before it."""
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault(name.rpartition(".")[2], []).append(name)
    qualified = {name if "." in name else f"{method}.{name}": [name] for name in names}
    return plain | qualified  # the latter wins


#: ``of:N`` in a schedule: the epochs of the training that it was written for.
_Of = Annotated[int, Gt(0)]


def _schedule(term: str, text: str, epochs: int) -> Schedule:
    """Parse ``off_until:30,steps:30/60/90,factor:0.9,ramp:20,warmup:20,of:240``; each part is optional.

    A schedule with ``of`` is scaled from so many epochs to ``epochs``.
    """
    known = {**annotations(Schedule), "of": _Of}
    try:
        parts = dict(part.split(":") for part in text.split(","))
        found = {name: parse(known[name], name, value.replace("/", ",")) for name, value in parts.items()}
        of = found.pop("of", None)
        schedule = Schedule(**found)
        return schedule if of is None else schedule.scaled(epochs, of)
    except (ValueError, KeyError) as error:
        raise BadRequest(
            f"--set schedule.{term} takes parts of off_until:30,steps:30/60/90,factor:0.9,ramp:20,warmup:20,of:240, "
            f"not '{text}'"
        ) from error
