"""Warnings about single runs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from statistics import NormalDist
from typing import Final

from kdtable.data.spec import BUILT_IN
from kdtable.papers import defaults
from kdtable.recipes.metrics import VALIDATED, Metric
from kdtable.report import plugged
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
    known = cache(defaults)
    changes = [[] if first.status == "n/a" else _changes(first, known) for first in runs.firsts]
    short = [_short(first, teacher) for first, teacher, _ in _kinds(runs, teachers)]
    columns = zip(runs.id, runs.kind, runs.status, runs.reason, guessing(runs, teachers), strict=True)
    found: dict[str, list[str]] = defaultdict(list)
    for run_id, kind, status, reason, guesses in columns:
        if status == "n/a":
            continue
        if text := short[kind]:
            found[text].append(run_id)
        if status == "failed" and (reason or "").startswith(DIVERGED):
            found["the loss became NaN or infinite"].append(run_id)
        if guesses:
            found["the student never left chance level"].append(run_id)
        for warning in changes[runs.kinds[kind][0]]:
            found[warning].append(run_id)
    return found


def guessing(runs: ShownRuns, teachers: Measured) -> list[bool]:
    """Whether each run is done and never left chance level."""
    bounds = [_bound_of(first, images, teacher) for first, teacher, images in _kinds(runs, teachers)]
    columns = zip(runs.status, runs.best, runs.kind, strict=True)
    return [status == "done" and best is not None and best <= bounds[kind] for status, best, kind in columns]


def _kinds(runs: ShownRuns, teachers: Measured) -> Iterator[tuple[RunRecord, TeacherRecord | None, int | None]]:
    """For each kind of runs the first run of its group, its teacher as measured, and the number of test images."""
    for group, sha256, images in runs.kinds:
        first = runs.firsts[group]
        yield first, teachers.get((sha256, first.data)), images


def lacking(teacher: TeacherRecord, main: Metric) -> str | None:
    """How far a measured teacher falls short of its claim, as a clause; ``None`` if it does not, or has no claim."""
    reached = main.shown(teacher.metrics[main.stored])
    return shortfall(teacher.network, teacher.data, reached, teacher.claimed, teacher.images)


@cache
def best_guess(chance: float, images: int | None, epochs: int) -> float:
    """Bound that the best of ``epochs`` guesses exceeds as rarely as one guess exceeds `ERRORS` standard errors.

    Args:
        chance: accuracy of a guess, in [0, 1].
        images: size of the test set; ``None`` if not known: the bound is then chance itself.
        epochs: number of epochs that the best was chosen from, since more epochs make a lucky one likelier.
    """
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
    majority = (first.metrics_of(VALIDATED) or first.metrics_of("last") or {}).get("majority", 0.0)
    chance = max(1 / identity["data"]["num_classes"], majority)
    return best_guess(chance, images, identity["recipe"]["epochs"])


def _short(first: RunRecord, teacher: TeacherRecord | None) -> str | None:
    return None if teacher is None else lacking(teacher, first.protocol.main)


def _changes(run: RunRecord, known: Defaults) -> list[str]:
    """Warnings on what differs from the run's paper."""
    identity = run.protocol.identity
    fields = own_changes(run, identity)
    found = [f"the recipe differs from that of {run.paper}: {'; '.join(fields)}"] if fields else []
    if settings := changed_settings(run, identity, known):
        found.append(f"settings of {run.row} differ from the paper's: {', '.join(settings)}")
    return found + plugged.warnings(identity)
