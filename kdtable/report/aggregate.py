"""Group the store's runs into comparisons. Which runs may be averaged is decided once for each protocol.

A *comparison* holds runs with equal data set, precision, component versions and recipe. Learning rates may differ,
since they belong to the student. :mod:`kdtable.report.placement` places rows with a recipe of their own. A *group* is
the seeds of one protocol and row: what a cell averages, and nothing else. Means are over seeds only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from kdtable.errors import counted
from kdtable.garbage import uncollected
from kdtable.methods.objective import PROBE_LR
from kdtable.models.names import stored_base as base_name
from kdtable.provenance import source_hash
from kdtable.recipes.metrics import VALIDATED, of_branches
from kdtable.recipes.recipe import Recipe
from kdtable.report import plugged
from kdtable.report.comparison import CELLS, Column, Comparison
from kdtable.report.footnotes import group_notes
from kdtable.report.labels import Defaults, changed_settings, labelled
from kdtable.report.one_row import one_row
from kdtable.report.placement import Placement, placements
from kdtable.report.warnings import Measured, guessing, lacking, measured
from kdtable.store import Store, verdicts
from kdtable.store.records import Provenance, RunRecord, single_teachers
from kdtable.store.shown import ShownRuns, shown_runs
from kdtable.teachers.manifest import by_checksum

Identity = Mapping[str, Any]
#: Row of the plain student.
STUDENT = "vanilla"
#: Rows that train something other rows start from, and its name in captions. Tables do not show them as rows.
PREPARATIONS = {"heads": "Heads of", "tofd-teacher": "Classifiers of TOFD's"}


def comparisons(
    store: Store,
    defaults: Defaults,
    rule: str = "last",
    stored: Iterable[str] = (),
    only: Iterable[str] | None = None,
) -> list[Comparison]:
    """Group the store's runs into comparisons.

    Args:
        store: the store.
        defaults: looks up a row's published settings, so that labels can name what was changed.
        rule: epoch to show, by the names of :data:`kdtable.recipes.metrics.EPOCHS`; ``best`` is chosen by the main
            metric.
        stored: names of the stored metrics to read; by default the main ones.
        only: ids of the runs to group.
    """
    with uncollected():
        runs = shown_runs(store, rule, stored, only)
        if not runs.id:
            return []
        known = measured(store.teacher_accuracies())
        frame = _frame(runs, known)
        found, cells = _placed(runs.firsts, _prepared(store, runs), cache(defaults), rule)
        cells = _counted(cells, frame)
        code = store.code_files({source for made in runs.provenances for source in made.sources} - {source_hash()})
        notes = group_notes(frame, runs.firsts, runs.provenances, verdicts.read(store.folder), code)
        own = [[] if note is None else [note] for note in cells["own"]]
        cells["notes"] = [[*of_cell, *notes.get(group, [])] for of_cell, group in zip(own, cells["group"], strict=True)]
        _add_runs(found, cells, frame, runs.provenances)
        _add_teachers(found, cells, frame, known)
        return found


def _frame(runs: ShownRuns, known: Measured) -> pd.DataFrame:
    """A line per run, with the number of its group and of its provenance (``made``)."""
    kind = np.array(runs.kind)
    columns = {
        "group": np.array([group for group, *_ in runs.kinds])[kind],
        "run": pd.Series(runs.id, dtype=object),
        "seed": np.array(runs.seed),
        "status": pd.Series(runs.status, dtype=object),
        "reason": pd.Series(list(runs.reason), dtype=object),
        "teacher_sha256": pd.Series([sha256 for _, sha256, _ in runs.kinds], dtype=object)
        .take(kind)
        .reset_index(drop=True),
        "made": np.array(runs.made),
        "guessing": np.array(guessing(runs, known)),
        "epoch": np.array(runs.epoch, dtype=float),
        "instead": np.array(runs.instead, dtype=bool),
        **{name: np.array(values, dtype=float) for name, values in runs.values.items()},
    }
    return pd.DataFrame(columns)


@dataclass(frozen=True, slots=True)
class _Summary:
    """What is kept of a protocol's identity: holding very many whole identities is slow."""

    origin: str
    label: str
    settings: tuple[str, ...]
    assisted: str | None
    foreign: str | None
    sources: str


def _placed(
    firsts: Sequence[RunRecord], prepared: Mapping[int, list[str]], defaults: Defaults, rule: str
) -> tuple[list[Comparison], pd.DataFrame]:
    """Comparisons, and a line per cell: ``comparison``, ``column``, ``label``, ``group``.

    A group without a teacher has a cell for each pair of its student.
    """
    found: dict[tuple[str, Recipe], Comparison] = {}
    summaries: list[_Summary] = []
    placed: list[tuple[Comparison, Column, int]] = []
    where = placements(_identities(firsts, summaries, defaults))
    for group, (run, of_protocol) in enumerate(zip(firsts, where, strict=True)):
        for placement in of_protocol:
            comparison, summary = _comparison_of(found, placement, run, rule), summaries[group]
            if run.row in PREPARATIONS:
                comparison.prepared += prepared.get(group, [])
                continue
            if summary.assisted and summary.assisted not in comparison.prepared:
                comparison.prepared.append(summary.assisted)
            column = Column(run.teacher, summary.origin, base_name(run.student), placement.lr)
            placed.append((comparison, column, group))
    placed.sort(key=lambda one: one[1].teacher is None)
    number = {id(comparison): index for index, comparison in enumerate(found.values())}
    lines = [
        (
            number[id(comparison)],
            index,
            summaries[group].label,
            firsts[group].row,
            summaries[group].settings,
            group,
            firsts[group].paper,
            summaries[group].foreign,
            firsts[group].protocol.id,
            summaries[group].sources,
        )
        for comparison, column, group in placed
        for index in _columns_of(comparison, column)
    ]
    heads = ["comparison", "column", "label", "row", "settings", "group", "paper", "foreign", "protocol", "sources"]
    cells = one_row(pd.DataFrame(lines, columns=heads))
    # A row of a plug-in that was edited in between is two rows, in whatever columns.
    edited = cells.groupby(["comparison", "label"])["sources"].transform("nunique") > 1
    cells.loc[edited & (cells["sources"] != ""), "label"] += " @" + cells["sources"]
    # The same row with another component version or normalisation gets a cell of its own.
    several = cells.groupby(["comparison", "column", "label"])["protocol"].transform("nunique") > 1
    cells.loc[several, "label"] += " #" + cells["protocol"].str[:6]
    return list(found.values()), cells


def _columns_of(comparison: Comparison, column: Column) -> list[int]:
    """Indices of the columns that a group stands in, appended if they are new; those with a teacher come first."""
    columns = comparison.columns
    same = [i for i, c in enumerate(columns) if (c.student, c.lr) == (column.student, column.lr)]
    if column.teacher is not None:
        same = [i for i in same if columns[i] == column]
    if not same:
        columns.append(column)
    return same or [len(columns) - 1]


def _identities(
    firsts: Iterable[RunRecord], summaries: list[_Summary], defaults: Defaults
) -> Iterator[tuple[RunRecord, Identity]]:
    """Yield a run of each protocol with its identity, and append what is kept of it to ``summaries``."""
    for run in firsts:
        identity = run.protocol.identity
        changed = changed_settings(run, identity, defaults)
        about = (
            _origin(run, identity),
            labelled(run.row, changed),
            tuple(changed),
            _assisted(run, identity) or _probed(identity),
        )
        sources = plugged.marked(identity) if plugged.MARK in run.protocol.text else ""
        summaries.append(_Summary(*about, _foreign(run, identity), sources))
        yield run, identity


def _origin(run: RunRecord, identity: Identity) -> str:
    """The origin of the teacher, which tells teachers of one name apart: its training run, or its checksum."""
    teacher = identity["teacher"] or {}
    if teacher.get("network") != run.teacher:
        return run.teacher_sha256 or ""  # a run trained it from the pair's own teacher
    return "+".join(one.get("run") or one.get("sha256") or "" for one in single_teachers(teacher))


def _assisted(run: RunRecord, identity: Identity) -> str | None:
    """A sentence on the assistant that a student learned from instead of its column's teacher; ``None`` without."""
    teacher = identity["teacher"]
    if teacher is None or "teachers" in teacher or base_name(teacher["network"]) == run.teacher:
        return None
    made = f"run {teacher['run'][:8]}" if "run" in teacher else f"file {teacher['sha256'][:8]}"
    learned = f"{run.row} of {base_name(run.student)} learned from {teacher['network']} ({made})"
    return f"{learned}, and that from {run.teacher}."


def _probed(identity: Identity) -> str | None:
    """A sentence on the linear probe of students without labels; ``None`` for others."""
    epochs = identity.get("stages", {}).get("main")
    if epochs is None:
        return None
    rate = identity["params"].get("probe_lr", PROBE_LR)
    return (
        f"Linear probe: {counted(epochs, 'epoch')}, lr {rate:g}, on a frozen trunk; the student's trunk has random "
        f"weights, and the teacher's number is that of its own classifier."
    )


def _foreign(run: RunRecord, identity: Identity) -> str | None:
    """A footnote on a pair's teacher of another data set or normalisation than the student's; ``None`` for none."""
    teacher, data = identity["teacher"], identity["data"]
    if teacher is None or teacher["network"] != run.teacher:
        return None
    return " ".join(note for one in single_teachers(teacher) if (note := _foreign_network(one, run.data, data))) or None


def _foreign_network(teacher: Identity, key: str, data: Identity) -> str | None:
    published = by_checksum(teacher["sha256"]) if "sha256" in teacher else None
    if published is not None and published.dataset != key:
        return f"Teacher {teacher['network']} was trained on {published.dataset}."
    if (teacher["mean"], teacher["std"]) != (data["mean"], data["std"]):
        return f"Teacher {teacher['network']} was trained under another input normalisation than its students."
    return None


def _prepared(store: Store, runs: ShownRuns) -> dict[int, list[str]]:
    """For each group of a preparing row, a sentence per finished run."""
    preparing = {kind: group for kind, (group, *_) in enumerate(runs.kinds) if runs.firsts[group].row in PREPARATIONS}
    columns = zip(runs.id, runs.kind, runs.status, strict=True)
    done = {i: preparing[kind] for i, kind, status in columns if kind in preparing and status == "done"}
    found: dict[int, list[str]] = {}
    for run in store.runs(done) if done else []:
        found.setdefault(done[run.id], []).append(_what_was_prepared(run))
    return found


def _what_was_prepared(run: RunRecord) -> str:
    """A sentence on what a preparing run trained, with the accuracies of its classifiers."""
    main, last = run.protocol.main, run.metrics_of(VALIDATED) or run.metrics_of("last") or {}
    what = f"{PREPARATIONS[run.row]} {base_name(run.student)} (run {run.id[:8]}, seed {run.seed})"
    branches = ", ".join(f"{main.shown(value):.2f}" for value in of_branches(last, main))
    own = f"{main.shown(last[main.stored]):.2f} {main.unit}"
    return f"{what}: {branches} {main.unit}, shallow to deep; its own classifier {own}."


def _comparison_of(
    found: dict[tuple[str, Recipe], Comparison], placement: Placement, run: RunRecord, rule: str
) -> Comparison:
    if placement.comparison not in found:
        found[placement.comparison] = placement.new_comparison(run, rule)
    comparison = found[placement.comparison]
    comparison.papers.add(run.paper)
    if placement.own:
        comparison.own[run.row] = list(dict.fromkeys([*comparison.own.get(run.row, ()), *placement.own]))
    return comparison


def _counted(cells: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Add the numbers of runs asked for and failed, and why the method cannot be run."""
    counts = frame.groupby(["group", "status"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["n/a", "failed", *counts.columns.difference(["n/a", "failed"])], fill_value=0)
    refused = frame[frame["status"] == "n/a"].groupby("group")["reason"].last().fillna("the method cannot be run on it")
    cells = cells.assign(
        asked=cells["group"].map(counts.sum(axis="columns") - counts["n/a"]),
        failed=cells["group"].map(counts["failed"]),
        not_applicable=cells["group"].map(refused).astype(object),
    )
    return cells.assign(not_applicable=cells["not_applicable"].where(cells["not_applicable"].notna(), None))


def _add_runs(
    found: Sequence[Comparison], cells: pd.DataFrame, frame: pd.DataFrame, made: Sequence[Provenance]
) -> None:
    """Give each comparison its labels, cells and finished runs, and their code and numerics."""
    done = frame[frame["status"] == "done"].drop(columns=["status", "reason", "teacher_sha256", "guessing", "instead"])
    groups = cells[["comparison", "group"]].drop_duplicates()
    runs = dict(list(groups.merge(done, on="group").groupby("comparison")))
    lines = dict(list(cells.groupby("comparison")))
    for number, comparison in enumerate(found):
        own = lines.get(number, cells.iloc[:0])
        comparison.labels = list(own["label"].unique())
        comparison.cells = own[list(CELLS)]
        comparison.failed = int(own.drop_duplicates("group")["failed"].sum())
        comparison.runs = runs.get(number, done.iloc[:0])
        origins = [made[one] for one in comparison.runs["made"].unique()]
        comparison.sources = {source for one in origins for source in one.sources}
        comparison.numerics = list(dict.fromkeys(text for one in origins for text in one.numerics))


def _add_teachers(found: Sequence[Comparison], cells: pd.DataFrame, frame: pd.DataFrame, known: Measured) -> None:
    """Add a cell for each column's teacher, and what its files reached (several if it was trained again) as runs."""
    files = frame[["group", "teacher_sha256"]].dropna().drop_duplicates()
    lines = cells[["comparison", "column", "group", "foreign"]].merge(files, on="group")
    lines = lines[lines["foreign"].notna() | lines["teacher_sha256"].isin({sha256 for sha256, _ in known})]
    blocks: Iterable[Any] = lines.groupby(["comparison", "column"])
    for (number, column), of_column in blocks:
        comparison, group = found[number], -1 - column
        keys = [(sha256, comparison.data_key) for sha256 in of_column["teacher_sha256"].unique()]
        records = [known[key] for key in keys if key in known]
        short = [text for record in records if (text := lacking(record, comparison.metrics[0]))]
        notes = [*(f"{text[0].upper()}{text[1:]}." for text in short), *of_column["foreign"].dropna().unique()]
        cell = {"label": "teacher", "column": column, "group": group, "paper": "", "asked": len(records), "failed": 0}
        reached = [
            {"group": group, "run": record.sha256, "seed": seed, "epoch": 0, **record.metrics}
            for seed, record in enumerate(records)
        ]
        comparison.cells = pd.concat(
            [comparison.cells, pd.DataFrame([cell | {"not_applicable": None, "notes": notes}])]
        )
        if reached:
            comparison.runs = pd.concat([comparison.runs, pd.DataFrame(reached)])
