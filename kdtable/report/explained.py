"""What a run optimises, in numbers and in its methods' own words: what ``kdtable explain`` prints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdtable.errors import BadRequest
from kdtable.methods import CLASSIFICATION, get, methods_of
from kdtable.methods.documented import first_line, meanings
from kdtable.methods.objective import PRETRAIN, Objective, Params, defaults, values
from kdtable.papers.listing import schedule_words
from kdtable.recipes.record import EpochRecord
from kdtable.recipes.schedule import CONSTANT, Schedule
from kdtable.report.labels import MEASURED
from kdtable.store.records import RunRecord
from kdtable.typed import annotations, changes


@dataclass(frozen=True, slots=True)
class TermLine:
    """A term of the main stage.

    Attributes:
        name: of the term.
        weights: its weight in each of the epochs shown.
        shares: of the loss in each of these epochs, weight included, in [0, 1]; empty of what was not trained.
        share: over all epochs; ``None`` of what was not trained.
    """

    name: str
    weights: tuple[float, ...]
    shares: tuple[float, ...] = ()
    share: float | None = None


@dataclass(frozen=True, slots=True)
class ParamLine:
    """A hyper-parameter: its value, its default, and what its docstring says."""

    name: str
    value: Any
    default: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class Explained:
    """What the runs of a row optimise.

        explained("at+crd", objective, epochs=240).terms[1].weights  # (1000.0, 1000.0, 1000.0)

    Attributes:
        row: name of the row.
        methods: each of its methods, with the first line of its docstring.
        epochs: of the main stage.
        shown: first, middle and last epoch.
        terms: of the main stage, in the order of addition.
        schedules: how a term's weight changes, in words.
        stages: epochs of each stage before it.
        params: hyper-parameters that it reads.
        of: the pairs, or the runs, that are so.
        reason: why it cannot be run on them; ``None`` if it can.
    """

    row: str
    methods: Mapping[str, str]
    epochs: int
    shown: tuple[int, ...]
    terms: tuple[TermLine, ...]
    schedules: Mapping[str, str]
    stages: Mapping[str, int]
    params: tuple[ParamLine, ...]
    of: tuple[str, ...] = ()
    reason: str | None = None

    def for_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def explained(row: str, objective: Objective, epochs: int, task: str = CLASSIFICATION) -> Explained:
    """What a row of a task optimises in so many epochs."""
    shown = tuple(dict.fromkeys((1, (epochs + 1) // 2, epochs)))
    terms = tuple(TermLine(name, tuple(_weight(objective, name, epoch) for epoch in shown)) for name in objective.terms)
    return Explained(
        row,
        {name: first_line(get(name, task)) for name in methods_of(row, task)},
        epochs,
        shown,
        terms,
        {term: schedule_words(own) for term, own in objective.schedules.items() if own.identity()},
        {stage: count for stage, count in objective.stage_epochs.items() if count},
        tuple(_params(objective)),
    )


def _weight(objective: Objective, term: str, epoch: int) -> float:
    return objective.terms[term] * objective.schedules.get(term, CONSTANT).at(epoch)


def _params(objective: Objective) -> Iterator[ParamLine]:
    kind = type(objective.params)
    usual, meaning = defaults(kind), meanings(kind)
    unread = () if "kd" in objective.terms else annotations(Params)
    for name, value in values(objective.params).items():
        if name not in unread or name in objective.stated:
            yield ParamLine(name, value, usual[name], meaning.get(name, ""))


def grouped(found: Iterable[Explained]) -> list[Explained]:
    """Those that differ only in their pairs or runs, as one; row by row."""
    every = list(found)
    rows = list(dict.fromkeys(one.row for one in every))
    same: list[Explained] = []
    for one in sorted(every, key=lambda one: rows.index(one.row)):
        index = next((i for i, other in enumerate(same) if replace(other, of=()) == replace(one, of=())), None)
        if index is None:
            same.append(one)
        else:
            same[index] = replace(same[index], of=(*same[index].of, *one.of))
    return same


def explained_runs(runs: Sequence[RunRecord], histories: Sequence[Sequence[EpochRecord]]) -> Explained:
    """What stored runs of one protocol optimised, with the mean shares of the terms over them.

    Raises:
        BadRequest: its method is not here, or has other hyper-parameters now.
    """
    run = runs[0]
    objective = stored_objective(run)
    probed = "main" in objective.stage_epochs  # its terms are those of the stage before
    epochs = run.protocol.identity["recipe"]["epochs"] if probed else run.epochs
    found = replace(explained(run.row, objective, epochs, run.protocol.task), of=tuple(one.id for one in runs))
    stage = PRETRAIN if probed else "main"
    mains = [[record for record in history if record.stage == stage] for history in histories]
    mains = [records for records in mains if records]
    return replace(found, terms=tuple(_trained(line, objective, found.shown, mains) for line in found.terms))


def _trained(
    line: TermLine, objective: Objective, shown: Sequence[int], mains: Sequence[Sequence[EpochRecord]]
) -> TermLine:
    """A line with its shares; those of epochs that no run has reached are left out."""
    if not mains:
        return line
    epochs = [[r for records in mains for r in records if r.epoch == epoch] for epoch in shown]
    shares = tuple(_share(objective, line.name, records) for records in epochs if records)
    return replace(line, shares=shares, share=_share(objective, line.name, [r for records in mains for r in records]))


def _share(objective: Objective, term: str, records: Iterable[EpochRecord]) -> float:
    """The term's part of the summed loss of some epochs; 0 of a loss of 0."""
    own = total = 0.0
    for record in records:
        parts = {name: _weight(objective, name, record.epoch) * value for name, value in record.terms.items()}
        own, total = own + parts.get(term, 0.0), total + sum(parts.values())
    return own / total if total else 0.0


def stored_objective(run: RunRecord) -> Objective:
    """The objective of a stored run.

    Raises:
        BadRequest: its method is not here, or has other hyper-parameters now.
    """
    identity = run.protocol.identity
    params = {name: value for name, value in identity["params"].items() if name not in MEASURED}
    changing = identity.get("schedules", {})
    try:
        kind = get(run.row, run.protocol.task).hyper
        schedules = {term: Schedule(**changes(Schedule, own)) for term, own in changing.items()}
        return Objective.of(kind, dict(identity["terms"]), params, schedules, identity.get("stages", {}))
    except ValueError as error:
        raise BadRequest(f"run {run.id} has settings that {run.row} does not have any more: {error}") from error
