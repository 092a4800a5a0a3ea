"""Made-up tables for figures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kdtable.recipes.metrics import METRICS
from kdtable.report.figures.data import FigureData
from kdtable.report.statistics import marks, paired

EPOCHS = 12


def made_up(
    pairs: Sequence[str],
    rows: Sequence[str],
    seeds: int = 3,
    *,
    metric: str = "top1",
    versus: str | None = "kd",
    published: bool = False,
    cost: str = "cpu-seconds",
) -> FigureData:
    """A table whose rows differ by some tenths of a point, with a spread over seeds of a third of one."""
    random = np.random.default_rng(0)
    lines = []
    for p, pair in enumerate(pairs):
        teacher, _, student = pair.rpartition(":")
        noise = random.normal(0, 0.3, seeds)
        for r, row in enumerate(rows):
            own = 68 + 2.0 * (p % 5) + 0.35 * ((7 * r) % 11) - 0.5 * (r == 2) + noise + random.normal(0, 0.25, seeds)
            lines += [
                (row, p, pair, teacher or None, student, metric, seed, f"{p}-{r}-{seed}", "last", EPOCHS, value)
                for seed, value in enumerate(own, start=1)
            ]
    names = ("row", "column", "pair", "teacher", "student", "metric", "seed", "run", "rule", "epoch", "value")
    values = pd.DataFrame(lines, columns=names)
    cells = cells_of(values, versus)
    cells["published"] = cells["mean"] + random.normal(0, 0.4, len(cells)) if published else np.nan
    return FigureData(
        "made up", METRICS[metric], versus, tuple(pairs), tuple(rows), cells, values, runs_of(values), epochs_of, cost
    )


def cells_of(values: pd.DataFrame, versus: str | None) -> pd.DataFrame:
    """Means and paired differences, as a result table has them."""
    lines = []
    for (pair, row), seeds in values.groupby(["pair", "row"], sort=False):
        baseline = values[(values["pair"] == pair) & (values["row"] == versus)].set_index("seed")["value"]
        gap = paired(seeds.set_index("seed")["value"], baseline)
        mark = marks(values[values["pair"] == pair].pivot(index="seed", columns="row", values="value"))[str(row)]
        column, mean = seeds["column"].iloc[0], seeds["value"].mean()
        lines.append((row, column, pair, mean, gap.mean, gap.low, gap.high, mark))
    return pd.DataFrame(lines, columns=["row", "column", "pair", "mean", "gap", "gap_low", "gap_high", "mark"])


def runs_of(values: pd.DataFrame) -> pd.DataFrame:
    """Runs that took longer, the further down their row stands."""
    runs = values[["run", "row", "teacher", "student"]].copy()
    number = runs["run"].str.split("-").str[1].astype(int)
    runs["cpu_seconds"] = 600.0 + 90 * (number % 5) + number
    runs["parameters"] = 78_042
    runs["teacher"] = runs["teacher"].where(runs["row"] != "student", None)
    return runs


def epochs_of(runs: Sequence[str]) -> pd.DataFrame:
    """Learning curves that end at different heights."""
    lines = []
    for run in runs:
        pair, row, seed = map(int, run.split("-"))
        for epoch in range(1, EPOCHS + 1):
            top1 = 0.7 - 0.5 / (epoch + row) + 0.004 * seed + 0.01 * pair
            lines += [(run, "main", epoch, "metric", "top1", top1), (run, "main", epoch, "seconds", "seconds", 50.0)]
        lines.append((run, "init", 1, "seconds", "seconds", 50.0) if row == 3 else lines[-1])
    return pd.DataFrame(lines, columns=["run", "stage", "epoch", "kind", "name", "value"]).drop_duplicates()
