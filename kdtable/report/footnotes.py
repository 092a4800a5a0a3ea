"""What a reader must know of the runs behind one number: short sentences, the same one for the same thing."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from kdtable.numerics.names import split_precision
from kdtable.report.warnings import (
    DIVERGED,
    Measured,
    at_chance,
    test_images,
)

Row = Mapping[str, Any]


def cell_notes(runs: Sequence[Row], num_classes: int, epochs: int, teachers: Measured) -> list[str]:
    """Footnotes of a cell.

    Args:
        runs: those of the cell that are done or have failed; all of one protocol.
        num_classes: of their data set.
        epochs: of their main stage.
        teachers: by :func:`kdtable.report.warnings.measured`.
    """
    done = [run for run in runs if run["status"] == "done"]
    made = one_of_each(done)
    lost = _at_chance(done, num_classes, epochs, teachers)
    found = [*_failures(runs), *_caches(done), *_left_out(made)]
    if lost:
        found.append(f"Never left chance level: {_seeds(lost)}.")
    found += _mixed(made, "states of the code", sources_of, _shortened)
    found += _mixed(made, "kinds of numerics", _first_numerics, numerics_difference)
    if any(len(_numerics(run)) > 1 for run in made):
        moved = [run for run in done if len(_numerics(run)) > 1]
        found.append(f"Continued under other numerics than begun with: {_seeds(moved)}.")
    return found + _mixed(done, "files of its teacher", lambda run: (str(run["teacher_sha256"]),), _shortened)


def _shortened(hashes: Sequence[str]) -> str:
    return ", ".join(text[:8] for text in hashes)


def one_of_each(runs: Iterable[Row]) -> list[Row]:
    """A run of every provenance: a large store has many runs of a few."""
    return list({run["provenance"]: run for run in runs}.values())


def numerics_of(runs: Iterable[Row]) -> list[str]:
    """Every distinct numerics that runs were made under, as canonical JSON, in order of appearance."""
    return list(dict.fromkeys(text for run in runs for text in _numerics(run)))


def numerics_difference(kinds: Sequence[str]) -> str:
    """The entries in which several numerics differ, as ``torch 2.11.0 or 2.15.0``."""
    contents = [json.loads(kind) for kind in kinds]
    keys = sorted({key for content in contents for key in content})
    values = {key: list(dict.fromkeys(str(content.get(key, "none")) for content in contents)) for key in keys}
    return "; ".join(f"{key} {' or '.join(options)}" for key, options in values.items() if len(options) > 1)


def sources_of(run: Row) -> tuple[str, ...]:
    """Hashes of the code that made a run, in order of appearance."""
    return _history(run["provenance"])[0]


def _failures(runs: Sequence[Row]) -> list[str]:
    reasons = Counter(
        "the loss became NaN or infinite" if (run["reason"] or "").startswith(DIVERGED) else "'kdtable status' says why"
        for run in runs
        if run["status"] == "failed"
    )
    return [f"Failed and left out: {_counted(count)} ({reason})." for reason, count in reasons.items()]


def _caches(done: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(run["precision"] for run in done)
    cached = [name for name in names if split_precision(name)[1] != "off"]
    return [f"With the teacher's outputs kept on disk ({name})." for name in cached]


def _left_out(made: Sequence[Row]) -> list[str]:
    counts = dict.fromkeys(count for run in made for count in _history(run["provenance"])[2])
    return [f"Without {count} of the data set's images, which could not be read." for count in counts]


def _counted(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _at_chance(done: Sequence[Row], num_classes: int, epochs: int, teachers: Measured) -> list[Row]:
    if not done:
        return []
    # The smallest test set grants most to luck: where all surpass even that, none needs to be looked at closely.
    smallest = min(run["test_images"] or 1 for run in done)
    if not at_chance(min(run["best_top1"] for run in done), num_classes, smallest, epochs):
        return []
    measured = [teachers.get((run["teacher_sha256"], run["data"])) for run in done]
    return [
        run
        for run, teacher in zip(done, measured, strict=True)
        if at_chance(run["best_top1"], num_classes, test_images(run, teacher), epochs)
    ]


def _mixed(
    runs: Sequence[Row],
    what: str,
    values_of: Callable[[Row], tuple[str, ...]],
    told: Callable[[Sequence[str]], str],
) -> list[str]:
    """The sentence of an average over runs that differ in what the reader must be told."""
    values = list(dict.fromkeys(value for run in runs for value in values_of(run)))
    return [f"Averaged over {len(values)} {what}: {told(values)}."] if len(values) > 1 else []


def _first_numerics(run: Row) -> tuple[str, ...]:
    return _numerics(run)[:1]


def _numerics(run: Row) -> tuple[str, ...]:
    return _history(run["provenance"])[1]


@lru_cache(maxsize=4096)
def _history(provenance: str | None) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """Distinct sources, numerics and numbers of images left out, of a provenance, which many runs share."""
    entries = json.loads(provenance or "[]")
    numerics = (json.dumps(entry["numerics"], sort_keys=True) for entry in entries)
    skipped = (entry["skipped"] for entry in entries if "skipped" in entry)
    sources = dict.fromkeys(entry["source"] for entry in entries)
    return tuple(sources), tuple(dict.fromkeys(numerics)), tuple(dict.fromkeys(skipped))


def _seeds(runs: Iterable[Row]) -> str:
    seeds = sorted(run["seed"] for run in runs)
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
