"""Footnotes of table cells: short sentences, equal for equal reasons."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from kdtable.methods import MEASURED_WITH
from kdtable.numerics.names import split_precision
from kdtable.report.warnings import (
    DIVERGED,
    Measured,
    at_chance,
    best_of,
    test_images,
)
from kdtable.store.records import RunRecord


def cell_notes(runs: Sequence[RunRecord], num_classes: int, epochs: int, teachers: Measured) -> list[str]:
    """Footnotes of a cell.

    Args:
        runs: the cell's runs, all of one protocol.
        num_classes: of the data set.
        epochs: of the main stage.
        teachers: by :func:`kdtable.report.warnings.measured`.
    """
    done = [run for run in runs if run.done]
    made = one_of_each(done)
    guessing = _at_chance(done, num_classes, epochs, teachers)
    found = [*_measured_with(made), *_failures(runs), *_caches(done), *_left_out(made)]
    if guessing:
        found.append(f"Never left chance level: {_seeds(guessing)}.")
    found += _mixed(made, "states of the code", lambda run: run.provenance.sources, _shortened)
    found += _mixed(made, "kinds of numerics", _first_numerics, numerics_difference)
    if any(len(run.provenance.numerics) > 1 for run in made):
        moved = [run for run in done if len(run.provenance.numerics) > 1]
        found.append(f"Continued under other numerics than begun with: {_seeds(moved)}.")
    return found + _mixed(done, "files of its teacher", lambda run: (str(run.teacher_sha256),), _shortened)


def _shortened(hashes: Sequence[str]) -> str:
    return ", ".join(text[:8] for text in hashes)


def one_of_each(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """One run for each provenance, since many runs share a few."""
    return list({run.provenance: run for run in runs}.values())


def numerics_of(runs: Iterable[RunRecord]) -> list[str]:
    """Distinct numerics of runs, as canonical JSON, in order of appearance."""
    return list(dict.fromkeys(text for run in runs for text in run.provenance.numerics))


def numerics_difference(kinds: Sequence[str]) -> str:
    """The entries in which numerics differ, such as ``torch 2.11.0 or 2.15.0``."""
    contents = [json.loads(kind) for kind in kinds]
    keys = sorted({key for content in contents for key in content})
    values = {key: list(dict.fromkeys(str(content.get(key, "none")) for content in contents)) for key in keys}
    return "; ".join(f"{key} {' or '.join(options)}" for key, options in values.items() if len(options) > 1)


def _measured_with(made: Iterable[RunRecord]) -> list[str]:
    """A footnote on networks that are measured with more than the student."""
    notes = []
    for run in made:
        parameters = None if run.result is None else run.result.parameters
        if (parts := MEASURED_WITH.get(run.row)) and parameters is not None:
            notes.append(f"The measured network is the student with {parts}: {parameters:,} parameters.")
    return list(dict.fromkeys(notes))


def _failures(runs: Sequence[RunRecord]) -> list[str]:
    reasons = Counter(
        "the loss became NaN or infinite" if (run.reason or "").startswith(DIVERGED) else "'kdtable status' says why"
        for run in runs
        if run.status == "failed"
    )
    return [f"Failed and left out: {_counted(count)} ({reason})." for reason, count in reasons.items()]


def _caches(done: Sequence[RunRecord]) -> list[str]:
    names = dict.fromkeys(run.precision for run in done)
    cached = [name for name in names if split_precision(name)[1] != "off"]
    return [f"With the teacher's outputs kept on disk ({name})." for name in cached]


def _left_out(made: Sequence[RunRecord]) -> list[str]:
    counts = dict.fromkeys(count for run in made for count in run.provenance.skipped)
    return [f"Without {count} of the data set's images, which could not be read." for count in counts]


def _counted(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _at_chance(done: Sequence[RunRecord], num_classes: int, epochs: int, teachers: Measured) -> list[RunRecord]:
    found = [(best, run) for run in done if (best := best_of(run)) is not None]
    if not found:
        return []
    # The smallest test set has the highest bound: if all runs exceed it, no run needs a check of its own.
    smallest = min(run.test_images or 1 for run in done)
    if not at_chance(min(best for best, _ in found), num_classes, smallest, epochs):
        return []
    return [
        run
        for best, run in found
        if at_chance(best, num_classes, test_images(run, teachers.get((run.teacher_sha256, run.data))), epochs)
    ]


def _mixed(
    runs: Sequence[RunRecord],
    what: str,
    values_of: Callable[[RunRecord], tuple[str, ...]],
    describe: Callable[[Sequence[str]], str],
) -> list[str]:
    """A footnote on an average over runs that differ in ``what``; empty if they do not."""
    values = list(dict.fromkeys(value for run in runs for value in values_of(run)))
    return [f"Averaged over {len(values)} {what}: {describe(values)}."] if len(values) > 1 else []


def _first_numerics(run: RunRecord) -> tuple[str, ...]:
    return run.provenance.numerics[:1]


def _seeds(runs: Iterable[RunRecord]) -> str:
    seeds = sorted(run.seed for run in runs)
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
