"""Group stored runs into the cells of tables. Means are over seeds only.

A *comparison* holds runs with equal data set, precision, component versions and recipe. Learning rates may differ,
since they belong to the student. :mod:`kdtable.report.placement` places rows with a recipe of their own. A cell holds
the seeds of one protocol.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdtable.models.names import base_name
from kdtable.recipes.metrics import of_branches
from kdtable.recipes.recipe import Recipe
from kdtable.report.cells import CellValues
from kdtable.report.comparison import Column, Comparison
from kdtable.report.footnotes import cell_notes, numerics_of, one_of_each
from kdtable.report.labels import Defaults, row_label
from kdtable.report.placement import Placement, placements
from kdtable.report.warnings import Measured, lacking, measured
from kdtable.store.records import RunRecord, TeacherRecord

Identity = Mapping[str, Any]
#: Row of the plain student.
STUDENT = "vanilla"
#: Rows that train something other rows start from, and its name in captions. Tables do not show them as rows.
PREPARATIONS = {"heads": "Heads of", "tofd-teacher": "Classifiers of TOFD's"}


@dataclass(frozen=True, slots=True)
class _Group:
    """The seeds of one protocol in one column. A plain student's cell is shared by all columns of that student."""

    comparison: Comparison
    column: Column
    label: str
    protocol: str
    runs: Sequence[RunRecord]
    cell: CellValues


def comparisons(
    runs: Iterable[RunRecord],
    teachers: Iterable[TeacherRecord],
    defaults: Defaults,
    epoch: str = "last",
) -> list[Comparison]:
    """Group runs into comparisons.

    Args:
        runs: the store's runs.
        teachers: the store's measured teachers.
        defaults: looks up a row's published settings, so that labels can name what was changed.
        epoch: epoch to show, by the names of :data:`kdtable.recipes.metrics.EPOCHS`; ``best`` is chosen by the main
            metric.
    """
    known = measured(teachers)
    found: dict[tuple[str, Recipe], Comparison] = {}
    groups = _groups(runs, found, defaults)
    protocols: dict[tuple[int, Column, str], set[str]] = {}
    for group in groups:
        protocols.setdefault((id(group.comparison), group.column, group.label), set()).add(group.protocol)
    for group in groups:
        shared = protocols[id(group.comparison), group.column, group.label]
        # The same row with another component version or normalisation gets a cell of its own.
        label = group.label + (f" #{group.protocol[:6]}" if len(shared) > 1 else "")
        if label not in group.comparison.labels:
            group.comparison.labels.append(label)
        group.comparison.cells[label, group.column] = group.cell
    for group in {id(group.cell): group for group in groups}.values():
        _fill(group, epoch, known)
    for group in {(id(group.comparison), id(group.cell)): group for group in groups}.values():
        _add_sources(group)
    _add_teachers(groups, known)
    return list(found.values())


def _groups(runs: Iterable[RunRecord], found: dict[tuple[str, Recipe], Comparison], defaults: Defaults) -> list[_Group]:
    """One group for each comparison of a protocol; without a teacher, one for each pair of its student.

    Each protocol's identity is parsed once, since a store may hold very many runs.
    """
    seeds: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        seeds.setdefault((run.protocol.id, run.row), []).append(run)
    summaries: list[_Summary] = []
    where = placements(_identities(seeds.values(), summaries, defaults))
    placed = []
    for ((protocol, row), rows), summary, of_protocol in zip(seeds.items(), summaries, where, strict=True):
        run, cell = rows[0], CellValues()
        for placement in of_protocol:
            comparison = _comparison_of(found, placement, run)
            if row in PREPARATIONS:
                comparison.prepared += [_prepared(done) for done in rows if done.done]
                continue
            if summary.assisted and summary.assisted not in comparison.prepared:
                comparison.prepared.append(summary.assisted)
            column = Column(run.teacher, summary.origin, base_name(run.student), placement.lr)
            placed.append(_Group(comparison, column, summary.label, protocol, rows, cell))
    in_columns = [group for group in placed if group.column.teacher is not None]
    for group in in_columns:
        if group.column not in group.comparison.columns:
            group.comparison.columns.append(group.column)
    for group in placed:
        if group.column.teacher is None:
            own = group.column
            same = [c for c in group.comparison.columns if (c.student, c.lr) == (own.student, own.lr)]
            if not same:
                group.comparison.columns.append(own)
            in_columns += [replace(group, column=column) for column in same or [own]]
    return in_columns


@dataclass(frozen=True, slots=True)
class _Summary:
    """What is kept of a protocol's identity: holding very many whole identities is slow."""

    origin: str
    label: str
    assisted: str | None


def _identities(
    protocols: Iterable[Sequence[RunRecord]], summaries: list[_Summary], defaults: Defaults
) -> Iterator[tuple[RunRecord, Identity]]:
    """Yield a run of each protocol with its identity, and append what is kept of it to ``summaries``."""
    for run, *_ in protocols:
        identity = run.protocol.identity
        summaries.append(_Summary(_origin(run, identity), row_label(run, identity, defaults), _assisted(run, identity)))
        yield run, identity


def _origin(run: RunRecord, identity: Identity) -> str:
    """The origin of the teacher, which tells teachers of one name apart: its training run, or its checksum."""
    teacher = identity["teacher"] or {}
    if teacher.get("network") != run.teacher:
        return run.teacher_sha256 or ""  # a run trained it from the pair's own teacher
    return teacher.get("run") or teacher.get("sha256") or ""


def _assisted(run: RunRecord, identity: Identity) -> str | None:
    """A sentence on the assistant that a student learned from instead of its column's teacher; ``None`` without."""
    teacher = identity["teacher"]
    if teacher is None or base_name(teacher["network"]) == run.teacher:
        return None
    made = f"run {teacher['run'][:8]}" if "run" in teacher else f"file {teacher['sha256'][:8]}"
    learned = f"{run.row} of {base_name(run.student)} learned from {teacher['network']} ({made})"
    return f"{learned}, and that from {run.teacher}."


def _prepared(run: RunRecord) -> str:
    """A sentence on what a preparing run trained, with the accuracies of its classifiers."""
    main, last = run.protocol.main, run.metrics_of("last") or {}
    what = f"{PREPARATIONS[run.row]} {base_name(run.student)} (run {run.id[:8]}, seed {run.seed})"
    branches = ", ".join(f"{main.shown(value):.2f}" for value in of_branches(last, main))
    own = f"{main.shown(last[main.stored]):.2f} {main.unit}"
    return f"{what}: {branches} {main.unit}, shallow to deep; its own classifier {own}."


def _comparison_of(found: dict[tuple[str, Recipe], Comparison], placement: Placement, run: RunRecord) -> Comparison:
    if placement.comparison not in found:
        found[placement.comparison] = placement.new_comparison(run)
    comparison = found[placement.comparison]
    comparison.papers.add(run.paper)
    if placement.own:
        comparison.own[run.row] = list(dict.fromkeys([*comparison.own.get(run.row, ()), *placement.own]))
    return comparison


def _fill(group: _Group, epoch: str, known: Measured) -> None:
    cell, without_loss = group.cell, False
    for run in group.runs:
        if run.status == "n/a":
            cell.not_applicable = run.reason or "the method cannot be run on it"
            continue
        cell.asked += 1
        if run.status == "failed":
            cell.failed += 1
        elif run.done:
            found = run.metrics_of(epoch)
            without_loss |= found is None
            cell.measured[run.seed] = found or run.metrics_of("last") or {}
    comparison = group.comparison
    cell.notes = cell_notes(group.runs, comparison.data["num_classes"], comparison.recipe["epochs"], known)
    if without_loss:
        cell.notes.append("Of the last epoch, as its loss on the test images was not measured.")


def _add_sources(group: _Group) -> None:
    """Add a cell's code, numerics and failed runs to its comparison."""
    comparison = group.comparison
    comparison.failed.update(run.id for run in group.runs if run.status == "failed")
    made = one_of_each(run for run in group.runs if run.done)
    comparison.sources.update(source for run in made for source in run.provenance.sources)
    comparison.numerics = list(dict.fromkeys([*comparison.numerics, *numerics_of(made)]))


def _add_teachers(groups: Iterable[_Group], known: Measured) -> None:
    """Add the measured metrics of columns' teachers. A column has several files if its teacher was trained again."""
    columns: dict[tuple[int, Column], tuple[Comparison, dict[tuple[str | None, str], TeacherRecord]]] = {}
    for group in groups:
        if group.column.teacher is not None and group.runs[0].teacher_sha256 is not None:
            _, files = columns.setdefault((id(group.comparison), group.column), (group.comparison, {}))
            keys = dict.fromkeys((run.teacher_sha256, run.data) for run in group.runs)
            files.update((key, known[key]) for key in keys if key in known)
    for (_, column), (comparison, files) in columns.items():
        if files:
            main = comparison.metrics[0]
            notes = [f"{found[0].upper()}{found[1:]}." for file in files.values() if (found := lacking(file, main))]
            values = {number: record.metrics for number, record in enumerate(files.values())}
            comparison.teachers[column] = CellValues(asked=len(values), notes=notes, measured=values)
