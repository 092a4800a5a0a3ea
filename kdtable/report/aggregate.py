"""From stored runs to the cells of tables: means over seeds, and over nothing else.

Runs may stand in one table when data set, precision, component versions and recipe (but for the learning rate,
which belongs to the student) are equal: that is a *comparison*. Rows with a recipe of their own are placed by
:mod:`kdtable.report.placement`. A cell holds the seeds of one protocol.
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
#: Rows that prepare something for others, and what tables call it: no rows of theirs.
PREPARATIONS = {"heads": "Heads of", "tofd-teacher": "Classifiers of TOFD's"}


@dataclass(frozen=True, slots=True)
class _Group:
    """The seeds of one protocol, and where they stand; a student's without a teacher are one cell in many columns."""

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
    """Sort the store's runs into comparisons.

    Args:
        runs: of the store.
        teachers: the store's measured teachers.
        defaults: gives a row's own settings for a student, so that a label can name what was changed.
        epoch: which one counts, by the names of :data:`kdtable.recipes.metrics.EPOCHS`; the best is that of the best
            main metric, whose other metrics are shown too.
    """
    known = measured(teachers)
    found: dict[tuple[str, Recipe], Comparison] = {}
    groups = _groups(runs, found, defaults)
    protocols: dict[tuple[int, Column, str], set[str]] = {}
    for group in groups:
        protocols.setdefault((id(group.comparison), group.column, group.label), set()).add(group.protocol)
    for group in groups:
        shared = protocols[id(group.comparison), group.column, group.label]
        # The same row under another version of a component, or another normalisation: never one cell.
        label = group.label + (f" #{group.protocol[:6]}" if len(shared) > 1 else "")
        if label not in group.comparison.labels:
            group.comparison.labels.append(label)
        group.comparison.cells[label, group.column] = group.cell
    for group in {id(group.cell): group for group in groups}.values():
        _fill(group, epoch, known)
    for group in {(id(group.comparison), id(group.cell)): group for group in groups}.values():
        _trace(group)
    _teach(groups, known)
    return list(found.values())


def _groups(runs: Iterable[RunRecord], found: dict[tuple[str, Recipe], Comparison], defaults: Defaults) -> list[_Group]:
    """For each comparison of a protocol a group, and of a protocol without a teacher one per pair of its student.

    What a protocol means is looked at once, since a store may hold very many runs.
    """
    seeds: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        seeds.setdefault((run.protocol.id, run.row), []).append(run)
    met: list[_Met] = []
    where = placements(_meet(seeds.values(), met, defaults))
    placed = []
    for ((protocol, row), rows), seen, stands in zip(seeds.items(), met, where, strict=True):
        run, cell = rows[0], CellValues()
        for placement in stands:
            comparison = _comparison_of(found, placement, run)
            if row in PREPARATIONS:
                comparison.prepared += [_prepared(done) for done in rows if done.done]
                continue
            if seen.assisted and seen.assisted not in comparison.prepared:
                comparison.prepared.append(seen.assisted)
            column = Column(run.teacher, seen.origin, base_name(run.student), placement.lr)
            placed.append(_Group(comparison, column, seen.label, protocol, rows, cell))
    taught = [group for group in placed if group.column.teacher is not None]
    for group in taught:
        if group.column not in group.comparison.columns:
            group.comparison.columns.append(group.column)
    for group in placed:
        if group.column.teacher is None:
            own = group.column
            same = [c for c in group.comparison.columns if (c.student, c.lr) == (own.student, own.lr)]
            if not same:
                group.comparison.columns.append(own)
            taught += [replace(group, column=column) for column in same or [own]]
    return taught


@dataclass(frozen=True, slots=True)
class _Met:
    """What of a protocol is kept: whole identities of very many are slow to hold."""

    origin: str
    label: str
    assisted: str | None


def _meet(
    protocols: Iterable[Sequence[RunRecord]], met: list[_Met], defaults: Defaults
) -> Iterator[tuple[RunRecord, Identity]]:
    """A run of each protocol with its identity; what is kept of these is added to ``met``."""
    for run, *_ in protocols:
        identity = run.protocol.identity
        met.append(_Met(_origin(run, identity), row_label(run, identity, defaults), _assisted(run, identity)))
        yield run, identity


def _origin(run: RunRecord, identity: Identity) -> str:
    """What tells teachers of one name apart: the run that trained it, or its checksum."""
    teacher = identity["teacher"] or {}
    if teacher.get("network") != run.teacher:
        return run.teacher_sha256 or ""  # a run made it of the pair's own teacher
    return teacher.get("run") or teacher.get("sha256") or ""


def _assisted(run: RunRecord, identity: Identity) -> str | None:
    """Which other network a student learned from than the teacher that its column names."""
    teacher = identity["teacher"]
    if teacher is None or base_name(teacher["network"]) == run.teacher:
        return None
    made = f"run {teacher['run'][:8]}" if "run" in teacher else f"file {teacher['sha256'][:8]}"
    taught = f"{run.row} of {base_name(run.student)} learned from {teacher['network']} ({made})"
    return f"{taught}, and that from {run.teacher}."


def _prepared(run: RunRecord) -> str:
    """What a run prepared, and how good its classifiers are."""
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
    cell, unmeasured = group.cell, False
    for run in group.runs:
        if run.status == "n/a":
            cell.not_applicable = run.reason or "the method cannot be run on it"
            continue
        cell.asked += 1
        if run.status == "failed":
            cell.failed += 1
        elif run.done:
            found = run.metrics_of(epoch)
            unmeasured |= found is None
            cell.measured[run.seed] = found or run.metrics_of("last") or {}
    comparison = group.comparison
    cell.notes = cell_notes(group.runs, comparison.data["num_classes"], comparison.recipe["epochs"], known)
    if unmeasured:
        cell.notes.append("Of the last epoch, as its loss on the test images was not measured.")


def _trace(group: _Group) -> None:
    """Note in a comparison what made a cell's numbers, and what failed."""
    comparison = group.comparison
    comparison.failed.update(run.id for run in group.runs if run.status == "failed")
    made = one_of_each(run for run in group.runs if run.done)
    comparison.sources.update(source for run in made for source in run.provenance.sources)
    comparison.numerics = list(dict.fromkeys([*comparison.numerics, *numerics_of(made)]))


def _teach(groups: Iterable[_Group], known: Measured) -> None:
    """Note what the teachers of columns reached: one file each as a rule, but its training run may be repeated."""
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
