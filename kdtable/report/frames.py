"""Runs and their epochs as DataFrames: what figures, pages and the API are made of."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import pandas as pd

from kdtable.recipes.metrics import VALIDATED
from kdtable.recipes.record import EpochRecord
from kdtable.store import Store
from kdtable.store.records import RunRecord

RUNS: Final = (
    "run", "paper", "row", "pair", "teacher", "student", "data", "seed", "status", "reason", "precision", "epochs",
    "attempt", "code", "seconds", "waited", "cpu_seconds", "parameters", "method_parameters",
    "teacher_sha256", "protocol", "created", "finished",
)  # fmt: skip
VALUES: Final = (
    "run", "row", "pair", "teacher", "student", "data", "seed", "metric", "rule", "epoch", "value",
)  # fmt: skip
EPOCHS: Final = ("run", "stage", "epoch", "kind", "name", "value")


def runs_frame(runs: Iterable[RunRecord]) -> pd.DataFrame:
    """A line per run, with the columns `RUNS`.

    ``pair`` is "teacher:student", or the student alone; ``epochs`` are those of the main stage; ``seconds`` those of
    all epochs, and ``waited`` how many of them went into waiting for images; ``cpu_seconds`` were computed for the run
    alone; ``parameters`` are the student's, ``method_parameters`` those of adaptors and the like; ``code`` is a source
    hash, ``protocol`` an id.

        runs_frame(store.runs()).groupby("status").size()
    """
    return pd.DataFrame([_run(run) for run in runs], columns=list(RUNS))


def values_frame(runs: Iterable[RunRecord], rule: str | None = None) -> pd.DataFrame:
    """A line per finished run and metric that was measured, with the columns `VALUES`.

    ``epoch`` is the number of the epoch shown, ``value`` is in the unit shown (percent).

    Args:
        runs: of any tasks.
        rule: epoch to show, of :data:`kdtable.recipes.metrics.RULES`; by default the one that held-out images chose,
            and the last of runs without any. A run without such an epoch is left out.
    """
    return pd.DataFrame([line for run in runs for line in _values(run, rule)], columns=list(VALUES))


def older_frame(runs: Iterable[RunRecord], rule: str = "last") -> pd.DataFrame:
    """Like :func:`values_frame` with a column ``code``, for runs that :func:`kdtable.store.retraining.older_results`
    returns: as done runs with an older result in place of the current one.
    """
    lines = [(*line, run.result.code) for run in runs if run.result for line in _values(run, rule)]
    return pd.DataFrame(lines, columns=[*VALUES, "code"])


def epochs_frame(store: Store, run_ids: Iterable[str]) -> pd.DataFrame:
    """A line per number recorded of an epoch of runs' current results, with the columns `EPOCHS`.

    ``kind`` is "metric", "term", "loss", "lr" or "seconds"; the losses are "train" (weighted sum of the terms) and,
    where it was measured, "test". ``value`` is as measured.
    """
    lines = [
        (run_id, record.stage, record.epoch, *line)
        for run_id in run_ids
        for record in store.history(run_id)
        for line in _numbers(record)
    ]
    return pd.DataFrame(lines, columns=list(EPOCHS))


def pair_of(teacher: str | None, student: str) -> str:
    """The name of a pair."""
    return f"{teacher}:{student}" if teacher else student


def _run(run: RunRecord) -> Mapping[str, Any]:
    result = run.result
    return {
        **{name: getattr(run, name) for name in RUNS if hasattr(run, name)},
        "run": run.id,
        "pair": pair_of(run.teacher, run.student),
        "protocol": run.protocol.id,
        "code": result and result.code,
        "seconds": result and result.wall_seconds,
        "waited": result and result.waited_seconds,
        "cpu_seconds": result and result.cpu_seconds,
        "parameters": result and result.parameters,
        "method_parameters": result and result.method_parameters,
        "finished": result and result.finished,
    }


def _values(run: RunRecord, rule: str | None) -> Iterator[tuple[Any, ...]]:
    rule = rule or (VALIDATED if run.protocol.validated else "last")
    chosen = run.result.chosen.get(rule) if run.result and run.done else None
    if chosen is not None:
        epoch, measured = chosen
        about = (run.id, run.row, pair_of(run.teacher, run.student), run.teacher, run.student, run.data, run.seed)
        for metric in run.protocol.metrics:
            if metric.stored in measured:
                yield *about, metric.name, rule, epoch, metric.shown(measured[metric.stored])


def _numbers(record: EpochRecord) -> Iterator[tuple[str, str, float]]:
    yield from (("metric", name, value) for name, value in record.metrics.items())
    yield from (("term", name, value) for name, value in record.terms.items())
    yield "loss", "train", record.train_loss
    if record.test_loss is not None:
        yield "loss", "test", record.test_loss
    yield "lr", "lr", record.lr
    yield "seconds", "seconds", record.seconds


def lines_of(frame: pd.DataFrame) -> Iterable[Any]:
    """The lines of a frame as named tuples, whose values pandas' types cannot know."""
    return frame.itertuples(index=False)
