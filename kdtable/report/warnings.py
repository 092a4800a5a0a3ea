"""Warnings about single runs."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Final

from kdtable.data.spec import BUILT_IN
from kdtable.papers import defaults
from kdtable.recipes.metrics import Metric
from kdtable.report.labels import changed_settings
from kdtable.report.recipe_changes import own_changes
from kdtable.store.records import RunRecord, TeacherRecord
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


def measured(teachers: Iterable[TeacherRecord]) -> Measured:
    """Index measured teachers by checksum and data set."""
    return {(record.sha256, record.data): record for record in teachers}


def flags(run: RunRecord, teachers: Measured) -> list[str]:
    """Warnings about a run, each a short clause without a full stop; empty if there are none.

    Args:
        run: the stored run.
        teachers: indexed by :func:`measured`.
    """
    return _warnings(run, teachers, _Protocol.of)


def with_warnings(runs: Iterable[RunRecord], teachers: Measured) -> dict[str, list[str]]:
    """Map each warning to the ids of its runs; quick if many runs differ in the seed only."""
    known: dict[str, _Protocol] = {}

    def protocol_of(run: RunRecord) -> _Protocol:
        if run.protocol.id not in known:
            known[run.protocol.id] = _Protocol.of(run)
        return known[run.protocol.id]

    found: dict[str, list[str]] = {}
    for run in runs:
        for text in _warnings(run, teachers, protocol_of):
            found.setdefault(text, []).append(run.id)
    return found


def at_chance(best_top1: float, num_classes: int, images: int | None, epochs: int) -> bool:
    """Whether the best accuracy of a run could come from guessing in every epoch.

    Args:
        best_top1: best accuracy over the epochs, in [0, 1].
        num_classes: number of classes, assumed equally frequent.
        images: size of the test set; ``None`` if not known: the bound is then chance itself.
        epochs: number of epochs that the best was chosen from, since more epochs make a lucky one likelier.
    """
    return best_top1 <= _bound(num_classes, images, epochs)


@cache
def _bound(num_classes: int, images: int | None, epochs: int) -> float:
    """Bound that the best of ``epochs`` guesses exceeds as rarely as one guess exceeds `ERRORS` standard errors."""
    chance = 1 / num_classes
    error = 0.0 if images is None else math.sqrt(chance * (1 - chance) / images)
    return chance + error * _NORMAL.inv_cdf(_NORMAL.cdf(ERRORS) ** (1 / epochs))


@dataclass(frozen=True, slots=True)
class _Protocol:
    """What the warnings need of a protocol."""

    num_classes: int
    epochs: int
    changes_of: tuple[str, ...]

    @classmethod
    def of(cls, run: RunRecord) -> "_Protocol":
        identity = run.protocol.identity
        fields = own_changes(run, identity)
        found = [f"the recipe differs from that of {run.paper}: {'; '.join(fields)}"] if fields else []
        if settings := changed_settings(run, identity, defaults):
            found.append(f"settings of {run.row} differ from the paper's: {', '.join(settings)}")
        return cls(identity["data"]["num_classes"], identity["recipe"]["epochs"], tuple(found))


def _warnings(run: RunRecord, teachers: Measured, protocol_of: Callable[[RunRecord], _Protocol]) -> list[str]:
    if run.status == "n/a":
        return []
    protocol = protocol_of(run)
    teacher = teachers.get((run.teacher_sha256, run.data))
    found = [text] if teacher is not None and (text := lacking(teacher, run.protocol.main)) else []
    if run.status == "failed" and (run.reason or "").startswith(DIVERGED):
        found.append("the loss became NaN or infinite")
    best = best_of(run)
    if best is not None and at_chance(best, protocol.num_classes, test_images(run, teacher), protocol.epochs):
        found.append("the student never left chance level")
    return [*found, *protocol.changes_of]


def best_of(run: RunRecord) -> float | None:
    """Best accuracy, in [0, 1], of a done classification run; ``None`` for any other."""
    best = run.metrics_of("best")
    return best[run.protocol.main.stored] if run.done and best and run.protocol.task == GUESSED else None


def lacking(teacher: TeacherRecord, main: Metric) -> str | None:
    """How far a measured teacher falls short of its claim, as a clause; ``None`` if it does not, or has no claim."""
    reached = main.shown(teacher.metrics[main.stored])
    return shortfall(teacher.network, teacher.data, reached, teacher.claimed, teacher.images)


def test_images(run: RunRecord, teacher: TeacherRecord | None) -> int | None:
    """Number of images that a run's accuracies were measured on; ``None`` if not known."""
    if run.test_images is not None:
        return run.test_images
    if run.data in BUILT_IN:
        return BUILT_IN[run.data].test_count
    return None if teacher is None else teacher.images
