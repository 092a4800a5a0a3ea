"""What a sweep found: each setting's validation numbers over seeds and pairs, and the best of each method."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.sweep import Sweep, Trial
from kdtable.recipes.metrics import VALIDATED, Metric
from kdtable.store import Store
from kdtable.store.records import RunRecord


@dataclass(frozen=True, slots=True)
class TrialResult:
    """A trial's numbers on held-out images, in the unit shown.

    Attributes:
        trial: the method and its settings.
        number: place among the method's trials, from 1.
        by_pair: for each pair, the mean over seeds; ``None`` unless all its runs are done.
        by_seed: for each seed, the mean over pairs; empty unless all runs are done.
        lacking: why it cannot be chosen, in a few words; ``None`` if it can.
    """

    trial: Trial
    number: int
    by_pair: Mapping[str, float | None]
    by_seed: tuple[float, ...] = ()
    lacking: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean over seeds and pairs."""
        return fmean(self.by_seed) if self.by_seed else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds."""
        return stdev(self.by_seed) if len(self.by_seed) > 1 else None


@dataclass(frozen=True, slots=True)
class MethodResult:
    """The trials of a method, in order, and the best of them; ``None`` if none is finished."""

    method: str
    varied: tuple[str, ...]
    trials: tuple[TrialResult, ...]
    best: TrialResult | None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The results of a sweep by method, and the metric on held-out images that chose."""

    methods: tuple[MethodResult, ...]
    metric: Metric
    pairs: tuple[str, ...]
    seeds: int
    held_out: int


def stored_result(
    sweep: Sweep, planned: Sequence[Sequence[PlannedRun]], results: Path, url: str | None = None
) -> SweepResult:
    """The results of a sweep from a store, see `sweep_result`."""
    with closing(Store(results, url, create=False)) as store:
        return sweep_result(sweep, planned, store.runs({one.run.id for runs in planned for one in runs}))


def sweep_result(sweep: Sweep, planned: Sequence[Sequence[PlannedRun]], records: Iterable[RunRecord]) -> SweepResult:
    """Collect the results of a sweep; test images are not looked at.

    A trial counts only if all its runs are done. Of equally good trials the first is chosen.

    Args:
        sweep: the trials.
        planned: of each trial, its planned runs.
        records: the runs as stored.
    """
    known = {record.id: record for record in records}
    metric = next(iter(known.values())).protocol.main.on_validation()
    wanted = [[one for one in runs if not one.prerequisite] for runs in planned]
    pairs = tuple(dict.fromkeys(str(one.pair) for runs in wanted for one in runs if not one.not_applicable))
    methods = []
    for method in dict.fromkeys(trial.method for trial in sweep.trials):
        own = [(trial, runs) for trial, runs in zip(sweep.trials, wanted, strict=True) if trial.method == method]
        trials = tuple(_result(trial, n, runs, known, metric) for n, (trial, runs) in enumerate(own, start=1))
        sign = 1 if metric.higher_is_better else -1
        best = max((one for one in trials if one.by_seed), key=lambda one: sign * fmean(one.by_seed), default=None)
        methods.append(MethodResult(method, sweep.varied[method], trials, best))
    first = wanted[0][0].run.data
    seeds = len({one.run.seed for runs in wanted for one in runs})
    return SweepResult(tuple(methods), metric, pairs, seeds, first.validation)


def _result(
    trial: Trial, number: int, runs: Sequence[PlannedRun], known: Mapping[str, RunRecord], metric: Metric
) -> TrialResult:
    values: dict[str, dict[int, float | None]] = {}
    for one in runs:
        if not one.not_applicable:
            values.setdefault(str(one.pair), {})[one.run.seed] = _value(known.get(one.run.id), metric)
    by_pair = {pair: _mean(list(of_seed.values())) for pair, of_seed in values.items()}
    if not values:
        return TrialResult(trial, number, {}, lacking="N/A")
    flat = [value for of_seed in values.values() for value in of_seed.values()]
    if lacking := flat.count(None):
        return TrialResult(trial, number, by_pair, lacking=f"{lacking} of {len(flat)} not done")
    seeds = next(iter(values.values()))
    by_seed = tuple(fmean(found for of in values.values() if (found := of[seed]) is not None) for seed in seeds)
    return TrialResult(trial, number, by_pair, by_seed)


def _value(record: RunRecord | None, metric: Metric) -> float | None:
    measured = record.metrics_of(VALIDATED) if record is not None and record.done else None
    return None if measured is None else metric.shown(measured[metric.stored])


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found and len(found) == len(values) else None
