"""What a reader should be warned of in a run, whatever else it is averaged with."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Final

from kdtable.data.spec import BUILT_IN
from kdtable.papers import defaults
from kdtable.report.labels import changed_settings
from kdtable.report.recipe_changes import own_changes
from kdtable.teachers.claimed import shortfall

Row = Mapping[str, Any]
#: Measured teachers by checksum and data set.
Measured = Mapping[tuple[str, str], Row]

#: How the reason of a run begins whose loss became NaN or infinite.
DIVERGED: Final = "the loss became "

#: Standard errors above chance that a student's accuracy must reach, where there is one epoch to choose from.
ERRORS: Final = 2
_NORMAL: Final = NormalDist()


def measured(teachers: Iterable[Row]) -> Measured:
    """The store's measured teachers, as :func:`flags` looks them up."""
    return {(row["sha256"], row["data"]): row for row in teachers}


def flags(run: Row, teachers: Measured) -> list[str]:
    """Warnings about a run, each a short clause without a full stop; empty where there is nothing to say.

    Args:
        run: its row in the store, with ``meaning`` as JSON.
        teachers: by :func:`measured`.
    """
    return _warnings(run, teachers, _Protocol.of)


def with_warnings(runs: Iterable[Row], teachers: Measured) -> dict[str, list[str]]:
    """Every warning that some run has, and the ids of those runs; quick where many runs differ in the seed only."""
    known: dict[str, _Protocol] = {}

    def protocol_of(run: Row) -> _Protocol:
        if run["protocol_id"] not in known:
            known[run["protocol_id"]] = _Protocol.of(run)
        return known[run["protocol_id"]]

    found: dict[str, list[str]] = {}
    for run in runs:
        for text in _warnings(run, teachers, protocol_of):
            found.setdefault(text, []).append(run["id"])
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
    def of(cls, run: Row) -> "_Protocol":
        meaning = json.loads(run["meaning"])
        fields = own_changes(run, meaning)
        found = [f"the recipe differs from that of {run['paper']}: {'; '.join(fields)}"] if fields else []
        if settings := changed_settings(run, meaning, defaults):
            found.append(f"settings of {run['row']} differ from the paper's: {', '.join(settings)}")
        return cls(meaning["data"]["num_classes"], meaning["recipe"]["epochs"], tuple(found))


def _warnings(run: Row, teachers: Measured, protocol_of: Callable[[Row], _Protocol]) -> list[str]:
    if run["status"] == "n/a":
        return []
    protocol = protocol_of(run)
    teacher = teachers.get((run["teacher_sha256"], run["data"]))
    found = [text] if teacher is not None and (text := shortfall(teacher)) else []
    if run["status"] == "failed" and (run["reason"] or "").startswith(DIVERGED):
        found.append("the loss became NaN or infinite")
    images = test_images(run, teacher)
    if run["status"] == "done" and at_chance(run["best_top1"], protocol.num_classes, images, protocol.epochs):
        found.append("the student never left chance level")
    return [*found, *protocol.changes_of]


def test_images(run: Row, teacher: Row | None) -> int | None:
    """Number of images that the run's accuracies were measured on, if it can be known."""
    if (stored := run.get("test_images")) is not None:
        return int(stored)
    if run["data"] in BUILT_IN:
        return BUILT_IN[run["data"]].test_count
    return None if teacher is None else int(teacher["images"])
