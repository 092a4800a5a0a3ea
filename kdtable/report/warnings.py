"""What a reader should be warned of in a run, whatever else it is averaged with."""

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

#: The task whose accuracies can come from guessing.
GUESSED: Final = "classification"

#: How the reason of a run begins whose loss became NaN or infinite.
DIVERGED: Final = "the loss became "

#: Standard errors above chance that a student's accuracy must reach, where there is one epoch to choose from.
ERRORS: Final = 2
_NORMAL: Final = NormalDist()


def measured(teachers: Iterable[TeacherRecord]) -> Measured:
    """The store's measured teachers, as :func:`flags` looks them up."""
    return {(record.sha256, record.data): record for record in teachers}


def flags(run: RunRecord, teachers: Measured) -> list[str]:
    """Warnings about a run, each a short clause without a full stop; empty where there is nothing to say.

    Args:
        run: as the store has it.
        teachers: by :func:`measured`.
    """
    return _warnings(run, teachers, _Protocol.of)


def with_warnings(runs: Iterable[RunRecord], teachers: Measured) -> dict[str, list[str]]:
    """Every warning that some run has, and the ids of those runs; quick where many runs differ in the seed only."""
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
    """Whether a best accuracy (a share) could come from guessing in every epoch.

    Args:
        best_top1: of the run's epochs.
        num_classes: taken to be equally frequent.
        images: of the test set; ``None`` where that is not known, and then nothing is granted to luck.
        epochs: of which it is the best, so that one of them was lucky.
    """
    return best_top1 <= _bound(num_classes, images, epochs)


@cache
def _bound(num_classes: int, images: int | None, epochs: int) -> float:
    """What the best of so many guesses exceeds as rarely as one guess exceeds `ERRORS` standard errors."""
    chance = 1 / num_classes
    error = 0.0 if images is None else math.sqrt(chance * (1 - chance) / images)
    return chance + error * _NORMAL.inv_cdf(_NORMAL.cdf(ERRORS) ** (1 / epochs))


@dataclass(frozen=True, slots=True)
class _Protocol:
    """What all runs of a protocol share."""

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
    """The best accuracy (a share) of a finished run; ``None`` where it is not finished, or measures something else."""
    best = run.metrics_of("best")
    return best[run.protocol.main.stored] if run.done and best and run.protocol.task == GUESSED else None


def lacking(teacher: TeacherRecord, main: Metric) -> str | None:
    """What is wrong with a measured teacher, as a clause; ``None`` if nothing is, or nothing is claimed of it."""
    reached = main.shown(teacher.metrics[main.stored])
    return shortfall(teacher.network, teacher.data, reached, teacher.claimed, teacher.images)


def test_images(run: RunRecord, teacher: TeacherRecord | None) -> int | None:
    """Number of images that the run's accuracies were measured on, if it can be known."""
    if run.test_images is not None:
        return run.test_images
    if run.data in BUILT_IN:
        return BUILT_IN[run.data].test_count
    return None if teacher is None else teacher.images
