"""Made-up reports, in the shapes that the page is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kdtable.recipes.metrics import METRICS
from kdtable.report.details import Curve, Details, Section
from kdtable.report.rendering.html import page
from kdtable.report.result_table import CELLS, VALUES, Heading, ResultTable

METHODS = ("kd", "fitnet", "at", "sp", "nst", "crd", "crd+kd")
EPOCHS = 12


@dataclass(frozen=True)
class Report:
    """What the page is made of."""

    tables: tuple[ResultTable, ...]
    runs: pd.DataFrame
    epochs: pd.DataFrame
    details: Mapping[str, Details]

    @property
    def page(self) -> str:
        return page(self.tables, self.runs, self.epochs, self.details)


def made_up(
    pairs: Sequence[str] = ("resnet56:resnet20", "resnet32x4:ShuffleV1"),
    methods: Sequence[str] = METHODS,
    seeds: int = 3,
    *,
    metric: str = "top1",
    versus: str | None = "kd",
    published: bool = True,
    rules: Sequence[str] = ("last", "best"),
    epochs: int = EPOCHS,
    title: str = "crd-1: top-1 accuracy (%)",
) -> Report:
    """A report whose methods differ by some tenths of a point, with a spread over seeds of a third of one."""
    random = np.random.default_rng(0)
    rows = ("teacher", "student", *methods)
    lines = [line for column, pair in enumerate(pairs) for line in _values(column, pair, rows, seeds, metric, random)]
    values = pd.DataFrame(lines, columns=VALUES)
    tables = []
    for number, rule in enumerate(rules):
        of_rule = values.assign(rule=rule, value=values["value"] + 0.21 * number)
        tables.append(_table(title, pairs, rows, of_rule, metric, versus, published=published))
    runs = runs_of(values)
    ids = list(runs["run"])
    return Report(tuple(tables), runs, _epochs(values, ids, epochs), {run: _details(run, epochs) for run in ids})


def _values(
    column: int, pair: str, rows: Sequence[str], seeds: int, metric: str, random: np.random.Generator
) -> list[tuple[Any, ...]]:
    teacher, _, student = pair.rpartition(":")
    noise = random.normal(0, 0.25, seeds)
    found: list[tuple[Any, ...]] = []
    for number, row in enumerate(rows):
        own = 68 + 2.1 * (column % 4) + 0.45 * number + noise + random.normal(0, 0.2, seeds)
        if row == "teacher":
            found.append(
                (
                    "crd",
                    "cifar100",
                    row,
                    column,
                    pair,
                    teacher,
                    student,
                    metric,
                    0,
                    None,
                    "last",
                    EPOCHS,
                    74.31 + column,
                )
            )
            continue
        for seed, value in enumerate(own, start=1):
            run = f"{column:02x}{number:02x}{seed:012x}"
            found.append(
                (
                    "crd",
                    "cifar100",
                    row,
                    column,
                    pair,
                    teacher or None,
                    student,
                    metric,
                    seed,
                    run,
                    "last",
                    EPOCHS,
                    value,
                )
            )
    return found


def _table(
    title: str,
    pairs: Sequence[str],
    rows: Sequence[str],
    values: pd.DataFrame,
    metric: str,
    versus: str | None,
    *,
    published: bool,
) -> ResultTable:
    lines = [_cell(values, row, column, pair, metric, versus) for row in rows for column, pair in enumerate(pairs)]
    cells = _marked(pd.DataFrame(lines, columns=CELLS), higher=METRICS[metric].higher_is_better)
    if published:
        random = np.random.default_rng(1)
        cells["published"] = (cells["mean"] + random.normal(0, 0.5, len(cells))).round(2)
        cells["difference"] = cells["mean"] - cells["published"]
    return ResultTable(
        title,
        "cifar100",
        tuple(_heading(pair, metric) for pair in pairs),
        tuple(rows),
        cells,
        values,
        captions=("Top-1 accuracy of the last epoch: three seeds.",),
        footnotes=("Loss weights as in the released code.",),
        compared=published,
        versus=versus,
        seeds=int(cells["n"].max()),
        metrics=(METRICS[metric],),
        rule=values["rule"].iloc[0],
    )


def _heading(pair: str, metric: str) -> Heading:
    teacher, _, student = pair.rpartition(":")
    return Heading(pair, pair, METRICS[metric], teacher or None, student)


def _cell(values: pd.DataFrame, row: str, column: int, pair: str, metric: str, versus: str | None) -> tuple[Any, ...]:
    def of(label: str) -> "pd.Series[float]":
        return values[(values["row"] == label) & (values["column"] == column)].set_index("seed")["value"]

    own = of(row)
    gaps = (own - of(versus)).dropna() if versus in set(values["row"]) and row != "teacher" else own.iloc[:0]
    gap = gaps.mean() if len(gaps) else np.nan
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std() / len(gaps) ** 0.5 if len(gaps) > 1 else np.nan
    against = "above" if gap - half > 0 else "below" if gap + half < 0 else ""
    return (
        row, column, pair, metric, own.mean(), own.std(), len(own), len(own), 0, None, "done", np.nan, "", np.nan,
        False, 0, "", against, gap, gap - half, gap + half, len(gaps), (1,) if row == "crd" else (),
    )  # fmt: skip


def _marked(cells: pd.DataFrame, *, higher: bool) -> pd.DataFrame:
    for _, column in cells[~cells["row"].isin(("teacher", "student"))].groupby("column"):
        order = column.sort_values("mean", ascending=not higher).index
        for index, mark in zip(order, ("best", "tied", "second"), strict=False):
            cells.loc[index, "mark"] = mark
    return cells


def runs_of(values: pd.DataFrame) -> pd.DataFrame:
    """The frame of finished runs."""
    found = values.dropna(subset=["run"])
    number = found["run"].str[2:4].map(lambda text: int(text, 16))
    student = found["row"] == "student"
    return pd.DataFrame(
        {
            "run": found["run"], "paper": "crd", "row": found["row"].where(~student, "vanilla"), "pair": found["pair"],
            "teacher": found["teacher"].where(~student, None), "student": found["student"], "data": "cifar100",
            "seed": found["seed"], "status": "done", "reason": None, "precision": "fp32", "epochs": EPOCHS,
            "attempt": 1, "code": "5a5a5a5a", "seconds": 610.0 + 95 * (number % 5) + number, "waited": 0.0,
            "cpu_seconds": 300.0 + 20 * (number % 5), "method_parameters": 1_000 * (number % 3),
            "parameters": 278_324 + 1_000 * (number == 3), "teacher_sha256": "a" * 64, "protocol": "p",
            "created": "2026-01-02T03:04:05", "finished": "2026-01-02T04:05:06",
        }
    ).reset_index(drop=True)  # fmt: skip


def _epochs(values: pd.DataFrame, ids: Sequence[str], epochs: int) -> pd.DataFrame:
    last = values.dropna(subset=["run"]).set_index("run")["value"]
    lines: list[tuple[Any, ...]] = []
    for run in ids:
        for epoch in range(1, epochs + 1):
            value = last[run] / 100 - 0.4 * (1 / epoch - 1 / epochs)
            lines.append((run, "main", epoch, "metric", "top1", value))
            lines.append((run, "main", epoch, "seconds", "seconds", 50.0))
    return pd.DataFrame(lines, columns=["run", "stage", "epoch", "kind", "name", "value"])


def _details(run: str, epochs: int) -> Details:
    """Details as :func:`kdtable.report.details.details_of` gives them; the run itself is not read by the page."""
    command = f"kdtable run --pairs resnet56:resnet20 --methods crd --seeds {int(run[-2:], 16)},"
    sections = (
        Section("Run", (("id", run), ("status", "done"), ("seed", str(int(run[-2:], 16))))),
        Section("Command", (("", command),)),
        Section("Recipe", (("epochs", str(epochs)), ("batch_size", "64"), ("lr", "0.05"))),
        Section("Teacher", (("network", "resnet56"), ("weights", f"SHA-256 {'a' * 64}"))),
        Section("Environment", (("source", "5a5a5a5a"), ("torch", "2.11.0"))),
    )
    steps = tuple(range(1, epochs + 1))
    curves = tuple(
        Curve("main", kind, name, steps, tuple(scale / step for step in steps))
        for kind, name, scale in (("loss", "train", 3.1), ("term", "ce", 2.3), ("term", "crd", 0.8))
    )
    return Details(run=None, command=command, sections=sections, curves=curves)  # type: ignore[arg-type]


def without(report: Report, row: str, column: int, **changes: Any) -> Report:
    """The report with a cell that has no number, and its runs as failed ones."""
    runs, tables = report.runs.copy(), []
    for table in report.tables:
        cells, values = table.cells.copy(), table.values
        here = (cells["row"] == row) & (cells["column"] == column)
        for name in ("mean", "std", "gap", "gap_low", "gap_high", "difference"):
            cells.loc[here, name] = np.nan
        for name, value in {"n": 0, "mark": "", "against": "", "state": "not done", **changes}.items():
            cells.loc[here, name] = value
        gone = (values["row"] == row) & (values["column"] == column)
        failed = runs["run"].isin(values[gone]["run"])
        runs.loc[failed, "status"], runs.loc[failed, "reason"] = "failed", "the loss became nan <in epoch 3>"
        tables.append(replace(table, cells=cells, values=values[~gone]))
    return replace(report, tables=tuple(tables), runs=runs)
