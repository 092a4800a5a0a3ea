"""Stored runs that were made by other code than the present one: a run's id does not change when its code does."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from kdtable.errors import counted
from kdtable.execution.known import opened
from kdtable.planning.code import changed_files, made_otherwise
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher
from kdtable.provenance import source_hash
from kdtable.store import RunRecord, Store
from kdtable.store.records import Result
from kdtable.store.retraining import Renewal, older_results

#: For each stale run by id: the files that differ from those that made it.
Stale = Mapping[str, frozenset[str]]


def stale_runs(runs: Mapping[str, Run], stored: Sequence[RunRecord], results: Path, url: str | None = None) -> Stale:
    """The runs with a result, or with a part of one, that was made by another method, network or step.

    A run is stale too if what it started from or learned from was: a prerequisite that is trained again leaves the
    students of its older result stale.

    Args:
        runs: the request by id, with prerequisites.
        stored: those of them that the store has.
        results: folder of the store.
        url: URL of its database.
    """
    trained = list(filter(_has_epochs, stored))
    if not any(runs[record.id].needs or set(record.provenance.sources) - {source_hash()} for record in trained):
        return {}
    with opened(results, url) as store:
        if store is None:
            return {}
        judge = _Judge(runs, store)
        found = {record.id: judge.changed(record.id, record.result) for record in trained if record.result}
    return {run_id: files for run_id, files in found.items() if files}


def stale_words(stale: Stale, stored: Iterable[RunRecord]) -> str:
    """``3 stored runs of kd were made by another kdtable/methods/kd.py``, the unfinished ones counted too."""
    records = [record for record in stored if record.id in stale]
    files = {file for record in records for file in stale[record.id]}
    unfinished = sum(not record.done for record in records)
    return made_otherwise(len(records), (record.row for record in records), files, unfinished)


def other_teachers(runs: Mapping[str, Run], stored: Iterable[RunRecord]) -> Stale:
    """The stored runs whose teacher was another file than the present one of that network, and that file."""
    found = {}
    for record in filter(_has_epochs, stored):
        ref = runs[record.id].teacher
        if isinstance(ref, FileTeacher) and record.teacher_sha256 not in (None, ref.sha256):
            found[record.id] = frozenset({str(ref.path)})
    return found


def plan_renewals(
    runs: Mapping[str, Run],
    stored: Sequence[RunRecord],
    results: Path,
    url: str | None,
    note: Callable[[str], None],
    *,
    retrain: bool,
) -> Mapping[str, Renewal]:
    """Tell which stored runs are stale, in one note; with ``retrain`` return what becomes of them, by id."""
    kept = [record for record in stored if record.id in runs]
    stale = stale_runs(runs, kept, results, url)
    if not retrain:
        if stale:
            note(f"{stale_words(stale, kept)}: --retrain trains {'it' if len(stale) == 1 else 'them'} again")
        return {}
    retaught = other_teachers(runs, kept)
    every = {run: stale.get(run, frozenset()) | retaught.get(run, frozenset()) for run in {**stale, **retaught}}
    if not every:
        note("--retrain changes nothing: no stored run of these was made by other code than the present one")
        return {}
    back = _older_by_present_code(runs, stale.keys() - retaught.keys(), results, url)
    codes = {record.id: record.result.code for record in kept if record.result}
    note(f"{stale_words(every, kept)}{_what(len(every) - len(back), len(back))}")
    return {run: Renewal(codes[run], _teacher(runs[run]), run in retaught, back.get(run)) for run in every}


def _teacher(run: Run) -> str | None:
    return run.teacher.sha256 if run.teacher else None


def _what(again: int, back: int) -> str:
    """What is done about so many runs, as the end of a sentence."""
    if not back:
        return f", and {'is' if again == 1 else 'are'} trained again"
    older = f"{counted(back, 'older result')} by the present code {'is' if back == 1 else 'are'} shown again"
    return f": {counted(again, 'run')} to train again, {older}" if again else f": {older}"


def _older_by_present_code(
    runs: Mapping[str, Run], stale: Collection[str], results: Path, url: str | None
) -> Mapping[str, str]:
    """Stale runs that have an older result that the present code would give again, and that result's hash."""
    with opened(results, url) as store:
        if store is None:
            return {}
        judge = _Judge(runs, store)
        older = [(run.id, run.result) for run in older_results(store, stale) if run.result]
        # A result whose teacher was another file has a hash that is no code's.
        fresh = [(run, result) for run, result in older if result.code in result.provenance.sources]
        return {run: result.code for run, result in fresh if not judge.changed(run, result)}


class _Judge:
    """Compares results with the present code; reads the store once for each question."""

    def __init__(self, runs: Mapping[str, Run], store: Store) -> None:
        self._runs = runs
        self._results = cache(store.results)
        self._files = cache(lambda source: store.code_files([source]))

    def changed(self, run_id: str, result: Result) -> frozenset[str]:
        """The files that differ from those that made a result, or what it started from or learned from."""
        run, sources = self._runs[run_id], result.provenance.sources
        known = {code: files for source in sources for code, files in self._files(source).items()}
        found = changed_files(run.protocol, sources, known)
        for need in run.needs:
            if need in self._runs and (used := _used(self._results(need), result.started)):
                found |= self.changed(need, used)
        return found


def _used(made: Collection[Result], started: str) -> Result | None:
    """Which of a prerequisite's results a run used: the last that was finished when the run started."""
    finished = sorted((str(result.finished), result.code, result) for result in made if result.finished)
    before = [result for when, _, result in finished if when <= started]
    return before[-1] if before else next((result for *_, result in finished), None)


def _has_epochs(record: RunRecord) -> bool:
    return record.done or (record.result is not None and record.result.wall_seconds > 0)
