"""Answers to what conferences ask: what varies between runs, how many there are, and what they cost in all.

The questions are items 7 (statistical significance) and 8 (compute) of the NeurIPS paper checklist.
"""

import json
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

import pandas as pd
import sqlalchemy as sa

from kdtable.errors import BadRequest
from kdtable.garbage import uncollected
from kdtable.report.frames import runs_frame
from kdtable.report.rendering.terminal import LINE
from kdtable.store import Store
from kdtable.store.records import RunRecord, unpacked
from kdtable.store.rows import legible
from kdtable.store.schema import histories, runs

#: Words of states, in the order in which they are counted.
_STATES: Final = {"done": "done", "failed": "failed", "running": "running", "planned": "not trained yet"}

_ANSWERS: Final = """\
Experiment statistical significance (NeurIPS checklist, item 7)

Yes, where a table has two seeds or more.

Every number is the mean over the seeds of one protocol ({seeds}), and what follows ± is the sample standard deviation
over these seeds (n - 1 in the denominator), not the standard error.

What varies: a seed draws the student's initial weights, those of the method's own modules, the order and the
augmentation of the training images, and the method's random numbers. What does not vary: the split of the data, the
teacher's weights, and all hyper-parameters.

Differences between methods are paired by seed, since equal seeds share start and batches. Their intervals are 95 %
Student t-intervals, which assume that the differences are normally distributed. A method is called best, tied or better
than another by these intervals; methods without two common seeds are not compared.

Experiments compute resources (NeurIPS checklist, item 8)

Yes.

Runs: {counts}. Devices: {devices}.

Per finished run: median {median}, longest {longest} for all its epochs, beside the other students that were trained
with it from the same batches.

In all: {total} of a device's time; of these, {failed} for runs that failed, and {superseded} for results that a later
version of the code has replaced. What this store has not recorded (epochs that were broken off, teachers, trials
elsewhere) is not counted: add it.
"""


def checklist(store: Store) -> str:
    """Answers about all runs of a store, ready to paste.

    Raises:
        BadRequest: the store holds no run.
    """
    records = store.runs()
    if not records:
        raise BadRequest("the store holds no run yet: start with 'kdtable run'")
    frame = runs_frame(records)
    done = frame[frame["status"] == "done"]
    seeds = done.groupby("protocol")["seed"].nunique()
    hours = _hours(store)
    of_status = hours[hours["current"]].groupby("status")["seconds"].sum()
    counts = frame["status"].value_counts()
    answers = _ANSWERS.format(
        seeds=_range(seeds),
        counts=", ".join(f"{counts[state]:,} {words}" for state, words in _STATES.items() if state in counts),
        devices=", ".join(_devices(records)) or "none yet",
        median=_duration(done["seconds"].median()),
        longest=_duration(done["seconds"].max()),
        total=_duration(hours["seconds"].sum()),
        failed=_duration(of_status.get("failed", 0.0)),
        superseded=_duration(hours.loc[~hours["current"], "seconds"].sum()),
    )
    width = shutil.get_terminal_size((LINE, 0)).columns
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in answers.split("\n\n"))


def _range(seeds: "pd.Series[int]") -> str:
    if seeds.empty:
        return "none has finished"
    low, high = seeds.min(), seeds.max()
    return f"{low} of them" if low == high else f"between {low} and {high} of them"


def _hours(store: Store) -> pd.DataFrame:
    """For each result: its run's ``status``, whether it is ``current``, and ``seconds`` of worker time.

    Students that are trained together share their time equally.
    """
    found = pd.DataFrame(_results(store), columns=["status", "current", "seconds"])
    return found.astype({"current": bool, "seconds": float})


def _results(store: Store) -> Iterator[tuple[str, bool, float]]:
    query = sa.select(runs.c.id, runs.c.status, runs.c.code == histories.c.code, histories.c.content)
    with store.database.read() as db, uncollected():
        for run_id, status, current, content in db.execute(query.where(runs.c.key == histories.c.run)):
            with legible(f"the history of run {run_id}"):
                epochs = unpacked(content)
            yield status, bool(current), sum(one.seconds / one.cohort_size for one in epochs)


def _devices(records: Iterable[RunRecord]) -> list[str]:
    """Devices that runs were made on, in order of appearance."""
    made = dict.fromkeys(text for run in records for text in run.provenance.numerics)
    return list(dict.fromkeys(str(json.loads(text).get("device", "an unknown device")) for text in made))


def _duration(seconds: float) -> str:
    if pd.isna(seconds):
        return "none"
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"
