"""Footnotes of table cells: short sentences, equal for equal reasons."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from kdtable.errors import counted
from kdtable.methods import MEASURED_WITH
from kdtable.numerics.names import split_precision
from kdtable.planning.code import changed_files, other_code
from kdtable.report import plugged
from kdtable.report.warnings import DIVERGED
from kdtable.store.records import Provenance, RunRecord
from kdtable.store.verdicts import FAILED, Verdict

#: A group of runs (the seeds of one protocol), and a footnote on it.
_Note = tuple[int, str]


def group_notes(
    runs: pd.DataFrame,
    firsts: Sequence[RunRecord],
    made: Sequence[Provenance],
    examined: Mapping[str, Sequence[Verdict]],
    code: Mapping[str, Mapping[str, str]],
) -> dict[int, list[str]]:
    """Footnotes by group.

    Args:
        runs: a line per run; see :func:`kdtable.report.aggregate.comparisons`.
        firsts: the first run of each group.
        made: provenance by the numbers in the column ``made``.
        examined: verdicts on devices; see :func:`kdtable.store.verdicts.read`.
        code: the files of the code that made them; see :meth:`kdtable.store.results.Store.code_files`.
    """
    done = runs[runs["status"] == "done"]
    by_group = _distinct(done, "made")
    provenances = {group: [made[number] for number in numbers] for group, numbers in by_group.items()}
    found: dict[int, list[str]] = defaultdict(list)
    for group, text in [
        *_measured_with(by_group, firsts),
        *_first_stages(by_group, firsts),
        *_failures(runs),
        *_caches(by_group, firsts),
        *_plugins(by_group, firsts),
        *_left_out(provenances),
        *_trained_elsewhere(provenances, firsts),
        *_failed_checks(provenances, examined),
        *_of_seeds("Never left chance level", done[done["guessing"]]),
        *_other_code(done, firsts, made, code),
        *_mixed("states of the code", _each(provenances, lambda one: one.sources), _shortened),
        *_mixed("kinds of numerics", _each(provenances, lambda one: one.numerics[:1]), numerics_difference),
        *_mixed("sets of packages", _each(provenances, lambda one: one.libraries), numerics_difference),
        *_of_seeds("Continued under other numerics than begun with", done[done["made"].map(_moved(made)).astype(bool)]),
        *_mixed("files of its teacher", _distinct(done, "teacher_sha256"), _shortened),
        *((group, "Of the last epoch, as its loss on the test images was not measured.") for group in _instead(done)),
    ]:
        found[group].append(text)
    return found


def numerics_difference(kinds: Sequence[str]) -> str:
    """The entries in which numerics differ, such as ``torch 2.11.0 or 2.15.0``."""
    contents = [json.loads(kind) for kind in kinds]
    keys = sorted({key for content in contents for key in content})
    values = {key: list(dict.fromkeys(str(content.get(key, "none")) for content in contents)) for key in keys}
    return "; ".join(f"{key} {' or '.join(options)}" for key, options in values.items() if len(options) > 1)


def _distinct(runs: pd.DataFrame, column: str) -> dict[int, list[Any]]:
    """Distinct values of a column by group, in order of appearance."""
    lines = runs[["group", column]].drop_duplicates()
    found: dict[int, list[Any]] = defaultdict(list)
    for group, value in zip(lines["group"], lines[column], strict=True):
        found[group].append(value)
    return found


def _each(
    provenances: Mapping[int, Sequence[Provenance]], values: Callable[[Provenance], tuple[str, ...]]
) -> dict[int, list[str]]:
    """Distinct values of provenances by group."""
    return {
        group: list(dict.fromkeys(value for one in made for value in values(one)))
        for group, made in provenances.items()
    }


def _mixed(what: str, values: Mapping[int, Sequence[str]], describe: Callable[[Sequence[str]], str]) -> Iterator[_Note]:
    """Footnotes on averages over runs that differ in ``what``."""
    for group, found in values.items():
        if len(found) > 1:
            yield group, f"Averaged over {len(found)} {what}: {describe(found)}."


def _shortened(hashes: Sequence[str]) -> str:
    return ", ".join(str(text)[:8] for text in hashes)


def _measured_with(groups: Iterable[int], firsts: Sequence[RunRecord]) -> Iterator[_Note]:
    """Footnotes on networks that are measured with more than the student."""
    for group in groups:
        parts, result = MEASURED_WITH.get(firsts[group].row), firsts[group].result
        if parts and result is not None and result.parameters is not None:
            yield group, f"The measured network is the student with {parts}: {result.parameters:,} parameters."


def _first_stages(groups: Iterable[int], firsts: Sequence[RunRecord]) -> Iterator[_Note]:
    """Footnotes on networks with different numbers of stages; parsing every identity would be slow."""
    for group in groups:
        if 'at_pairing":"first"' in firsts[group].protocol.text:
            yield (
                group,
                "The networks differ in their number of stages; as in released code, the first ones are compared.",
            )


def _failures(runs: pd.DataFrame) -> Iterator[_Note]:
    failed = runs[runs["status"] == "failed"]
    diverged = failed["reason"].map(lambda reason: str(reason).startswith(DIVERGED))
    counts: dict[Any, int] = failed.groupby([failed["group"], diverged], sort=False).size().to_dict()
    for (group, nan), count in counts.items():
        reason = "the loss became NaN or infinite" if nan else "'kdtable status' says why"
        yield group, f"Failed and left out: {counted(count, 'run')} ({reason})."


def _caches(groups: Iterable[int], firsts: Sequence[RunRecord]) -> Iterator[_Note]:
    for group in groups:
        name = firsts[group].precision
        if split_precision(name)[1] != "off":
            yield group, f"With the teacher's outputs kept on disk ({name})."


def _plugins(groups: Iterable[int], firsts: Sequence[RunRecord]) -> Iterator[_Note]:
    for group in groups:
        text = firsts[group].protocol.text
        for part in plugged.parts_of(json.loads(text)) if plugged.MARK in text else ():
            edited = f"; it is {part.today[:8]} now" if part.today and not part.same else ""
            yield group, f"The {part.noun} {part.name} is a plug-in's, of source {part.source[:8]}{edited}."


def _left_out(provenances: Mapping[int, Sequence[Provenance]]) -> Iterator[_Note]:
    for group, made in provenances.items():
        for count in dict.fromkeys(count for one in made for count in one.skipped):
            yield group, f"Without {count} of the data set's images, which could not be read."


def _trained_elsewhere(provenances: Mapping[int, Sequence[Provenance]], firsts: Sequence[RunRecord]) -> Iterator[_Note]:
    for group, made in provenances.items():
        if firsts[group].teacher is not None:  # a student alone may have shared its cohort
            for other in dict.fromkeys(other for one in made for other in one.teacher_data):
                yield group, f"The teacher was trained on another data set, {other}."


def _failed_checks(
    provenances: Mapping[int, Sequence[Provenance]], examined: Mapping[str, Sequence[Verdict]]
) -> Iterator[_Note]:
    """Footnotes on devices where an examination found something wrong."""
    failed = {name: [one.name for one in verdicts if one.result == FAILED] for name, verdicts in examined.items()}
    if not any(failed.values()):  # parsing numerics takes time
        return
    for group, texts in _each(provenances, lambda one: one.numerics).items():
        for numerics in map(json.loads, texts):
            device, torch = f"{numerics.get('device')},", f", torch {numerics.get('torch')},"
            for name, checks in failed.items():
                if checks and name.startswith(device) and torch in name:
                    yield group, f"'kdtable doctor' on {name}: failed in {', '.join(checks)}."


def _other_code(
    done: pd.DataFrame, firsts: Sequence[RunRecord], made: Sequence[Provenance], code: Mapping[str, Mapping[str, str]]
) -> Iterator[_Note]:
    """Footnotes on results whose method, networks or step have other code by now."""
    for group, numbers in _distinct(done, "made").items():
        for number in numbers:
            sources = [source for source in made[number].sources if source in code]
            if sources and (files := changed_files(firsts[group].protocol.identity, sources, code)):
                alike = done[(done["group"] == group) & (done["made"] == number)]
                yield from _of_seeds(f"Made by {other_code(files)} than the present one", alike)


def _of_seeds(what: str, runs: pd.DataFrame) -> Iterator[_Note]:
    found: dict[Any, list[int]] = runs.groupby("group")["seed"].apply(list).to_dict()
    for group, seeds in found.items():
        yield group, f"{what}: seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}."


def _moved(made: Sequence[Provenance]) -> Mapping[int, bool]:
    return {number: len(one.numerics) > 1 for number, one in enumerate(made)}


def _instead(done: pd.DataFrame) -> Iterable[int]:
    groups: Sequence[int] = done.loc[done["instead"], "group"].unique().tolist()
    return groups
