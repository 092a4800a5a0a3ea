"""Warnings about single runs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from statistics import NormalDist
from typing import Final, TypeVar

from kdtable.data.spec import BUILT_IN
from kdtable.papers import defaults
from kdtable.recipes.metrics import Metric
from kdtable.report.labels import Defaults, changed_settings
from kdtable.report.recipe_changes import own_changes
from kdtable.store.records import RunRecord, TeacherRecord
from kdtable.store.shown import ShownRuns
from kdtable.teachers.claimed import shortfall

#: Measured teachers by checksum and data set.
Measured = Mapping[tuple[str | None, str], TeacherRecord]

#: The task whose accuracies are compared with guessing.
GUESSED: Final = "classification"

#: Prefix of a failed run's reason if its loss became NaN or infinite.
DIVERGED: Final = "the loss became "

#: Standard errors above chance that an accuracy must exceed, for a single epoch.
ERRORS: Final = 2
_NORMAL: Final = NormalDist()

_T = TypeVar("_T")


def measured(teachers: Iterable[TeacherRecord]) -> Measured:
    """Index measured teachers by checksum and data set."""
    return {(record.sha256, record.data): record for record in teachers}


def flags(run: RunRecord, teachers: Measured) -> list[str]:
    """Warnings about a run, each a short clause without a full stop; empty if there are none.

    Args:
        run: the stored run.
        teachers: indexed by :func:`measured`.
    """
    return list(with_warnings(ShownRuns.of([run]), teachers))


def with_warnings(runs: ShownRuns, teachers: Measured) -> dict[str, list[str]]:
    """Map each warning to the ids of its runs; quick if many runs differ in the seed only."""
    known, changes = cache(defaults), dict[tuple[str, str], list[str]]()
    for key, first in runs.firsts.items():
        changes[key] = [] if first.status == "n/a" else _changes(first, known)
    guessed = guessing(runs, teachers)
    short = _each(runs, lambda first, sha256, _: _short(first, teachers.get((sha256, first.data))))
    columns = zip(runs.id, runs.protocol, runs.row, runs.status, runs.reason, guessed, short, strict=True)
    found: dict[str, list[str]] = {}
    for run_id, protocol, row, status, reason, guesses, text in columns:
        if status == "n/a":
            continue
        of_run = [text] if text else []
        if status == "failed" and (reason or "").startswith(DIVERGED):
            of_run.append("the loss became NaN or infinite")
        if guesses:
            of_run.append("the student never left chance level")
        for warning in (*of_run, *changes[protocol, row]):
            found.setdefault(warning, []).append(run_id)
    return found


def guessing(runs: ShownRuns, teachers: Measured) -> list[bool]:
    """Whether each run is done and never left chance level."""
    bounds = _each(runs, lambda first, sha256, images: _bound_of(first, images, teachers.get((sha256, first.data))))
    columns = zip(runs.status, runs.best, bounds, strict=True)
    return [status == "done" and best is not None and best <= bound for status, best, bound in columns]


def _each(runs: ShownRuns, of: Callable[[RunRecord, str | None, int | None], _T]) -> Iterator[_T]:
    """For each run ``of`` the first run of its protocol, the teacher's checksum and the number of test images."""
    known: dict[tuple[str, str, str | None, int | None], _T] = {}
    for key in zip(runs.protocol, runs.row, runs.teacher_sha256, runs.test_images, strict=True):
        if key not in known:
            known[key] = of(runs.firsts[key[:2]], *key[2:])
        yield known[key]


def at_chance(best_top1: float, num_classes: int, images: int | None, epochs: int) -> bool:
    """Whether the best accuracy of a run could come from guessing in every epoch.

    Args:
        best_top1: best accuracy over the epochs, in [0, 1].
        num_classes: number of classes, assumed equally frequent.
        images: size of the test set; ``None`` if not known: the bound is then chance itself.
        epochs: number of epochs that the best was chosen from, since more epochs make a lucky one likelier.
    """
    return best_top1 <= _bound(1 / num_classes, images, epochs)


def lacking(teacher: TeacherRecord, main: Metric) -> str | None:
    """How far a measured teacher falls short of its claim, as a clause; ``None`` if it does not, or has no claim."""
    reached = main.shown(teacher.metrics[main.stored])
    return shortfall(teacher.network, teacher.data, reached, teacher.claimed, teacher.images)


@cache
def _bound(chance: float, images: int | None, epochs: int) -> float:
    """Bound that the best of ``epochs`` guesses exceeds as rarely as one guess exceeds `ERRORS` standard errors."""
    error = 0.0 if images is None else math.sqrt(chance * (1 - chance) / images)
    return chance + error * _NORMAL.inv_cdf(_NORMAL.cdf(ERRORS) ** (1 / epochs))


def _bound_of(first: RunRecord, images: int | None, teacher: TeacherRecord | None) -> float:
    """The bound of a run's protocol; negative for tasks whose metric cannot be guessed."""
    if first.protocol.task != GUESSED:
        return -1.0
    if images is None and first.data in BUILT_IN:
        images = BUILT_IN[first.data].test_count
    elif images is None and teacher is not None:
        images = teacher.images
    identity = first.protocol.identity
    # Who always answers the most frequent class is right that often.
    majority = (first.metrics_of("last") or {}).get("majority", 0.0)
    chance = max(1 / identity["data"]["num_classes"], majority)
    return _bound(chance, images, identity["recipe"]["epochs"])


def _short(first: RunRecord, teacher: TeacherRecord | None) -> str | None:
    return None if teacher is None else lacking(teacher, first.protocol.main)


def _changes(run: RunRecord, known: Defaults) -> list[str]:
    """Warnings on what differs from the run's paper."""
    identity = run.protocol.identity
    fields = own_changes(run, identity)
    found = [f"the recipe differs from that of {run.paper}: {'; '.join(fields)}"] if fields else []
    if settings := changed_settings(run, identity, known):
        found.append(f"settings of {run.row} differ from the paper's: {', '.join(settings)}")
    return found
