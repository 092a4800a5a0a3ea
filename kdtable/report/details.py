"""Everything about one run, in words: what ``kdtable show`` prints, and the page shows of a cell's runs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kdtable.errors import counted, unknown
from kdtable.recipes.metrics import PROBES, TRANSFER, VALIDATED
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.record import EpochRecord
from kdtable.report import plugged
from kdtable.report.commands import FILE, command_of
from kdtable.report.labels import schedule_text
from kdtable.report.warnings import Measured, flags, measured
from kdtable.store import Store
from kdtable.store.records import Result, RunRecord, single_teachers
from kdtable.teachers.manifest import by_checksum

Identity = Mapping[str, Any]
#: A label and its text.
Line = tuple[str, str]

#: Words for the epochs that tables show.
_EPOCH_WORDS: Final = {
    "last": "last epoch",
    "best": "best epoch",
    "lowest-loss": "epoch of the lowest test loss",
    VALIDATED: "epoch of the best validation",
    PROBES: "linear probes, of the student of epoch",
}


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under one heading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One number over the epochs of a stage.

    Attributes:
        stage: name of the stage.
        kind: ``loss`` (training's sum, or that on the test images), ``term``, ``metric`` or ``lr``.
        name: "train" or "test" for a loss; name of the term or of the measured metric; "lr".
        epochs: within the stage, from 1.
        values: as measured, one for each of ``epochs``.
    """

    stage: str
    kind: str
    name: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Details:
    """Everything about one run.

        for section in details(store, run_id).sections:
            print(section.title, dict(section.lines))

    Attributes:
        run: the run as stored.
        command: the command that makes it; ``None`` if its paper or row is not known here.
        sections: identity and state, command, recipe, objective, plug-ins, teacher, metrics, environment, older
            results, warnings; those without lines are left out.
        curves: losses, terms, metrics and learning rate over the epochs, stage by stage.
    """

    run: RunRecord
    command: str | None
    sections: tuple[Section, ...]
    curves: tuple[Curve, ...]


def details(store: Store, run_id: str) -> Details:
    """Read everything about a run.

    Raises:
        BadRequest: the store has no such run.
    """
    found = store.runs([run_id])
    if not found:
        raise unknown("run", run_id, (run.id for run in store.runs()))
    (run,) = found
    prerequisites = store.runs(made_by(run.protocol.identity))
    older = [result for result in store.results(run_id) if run.result is None or result.code != run.result.code]
    known = measured(store.teacher_accuracies())
    return details_of(run, store.history(run_id), known, prerequisites, older)


def made_by(identity: Identity) -> list[str]:
    """Ids of the runs that trained what a run learns from or starts from."""
    refs = [*single_teachers(identity["teacher"]), *single_teachers(identity.get("start"))]
    return [ref["run"] for ref in refs if "run" in ref]


def details_of(
    run: RunRecord,
    history: Sequence[EpochRecord],
    teachers: Measured,
    prerequisites: Iterable[RunRecord] = (),
    older: Iterable[Result] = (),
) -> Details:
    """Put everything about a run into words.

    Args:
        run: the run.
        history: its epochs.
        teachers: measured teachers, by :func:`kdtable.report.warnings.measured`.
        prerequisites: the runs that it starts from.
        older: its results by other code, which are kept beside the current one.
    """
    identity = run.protocol.identity
    command = command_of(run, prerequisites)
    sections = {
        "Run": _state(run),
        "Command": _command(identity, command),
        "Recipe": _recipe(identity["recipe"]),
        "Objective": _objective(identity),
        "Plug-ins": [(part.name, f"{part.noun}, {part.words}") for part in plugged.parts_of(identity)],
        "Teacher": _teacher(run, identity, teachers),
        "Metrics": _metrics(run),
        "Environment": _environment(run),
        "Older results": _older(run, older),
        "Warnings": [("", f"{text[0].upper()}{text[1:]}.") for text in flags(run, teachers)],
    }
    shown = tuple(Section(title, tuple(lines)) for title, found in sections.items() if (lines := list(found)))
    return Details(run, command, shown, tuple(curves(history)))


def _state(run: RunRecord) -> Iterator[Line]:
    yield "id", run.id
    yield "status", f"{run.status}: {run.reason}" if run.reason else run.status
    yield "paper and row", f"{run.paper}, {run.row}"
    yield "student", run.student
    held = run.protocol.identity["data"].get(VALIDATED)
    yield "data", f"{run.data}, {counted(held, 'training image')} held out for validation" if held else run.data
    yield "seed", str(run.seed)
    yield "precision", run.precision
    yield "epochs", f"{run.last_epoch} of {run.epochs}"
    yield "planned", run.created
    yield "attempts", str(run.attempt)
    if result := run.result:
        yield "started", result.started
        if result.finished:
            yield "finished", result.finished
        if result.parameters is not None:
            yield "parameters", f"{result.parameters:,}"
        if result.method_parameters:
            yield "of its method", f"{result.method_parameters:,} more parameters in training"
        yield "seconds", f"{result.wall_seconds:,.1f}, {result.waited_seconds:,.1f} of them waiting for images"
        if result.cpu_seconds is not None:
            yield "CPU seconds", f"{result.cpu_seconds:,.1f} for this run alone"
    if run.kept:
        yield "weights kept", run.kept
    yield "protocol", run.protocol.id


def _command(identity: Identity, command: str | None) -> Iterator[Line]:
    if command is None:
        of_plugin = ": name its plug-in with --plugin FILE" if plugged.parts_of(identity) else ""
        yield "", f"This kdtable does not know its paper or its row{of_plugin}."
        return
    yield "", command
    if f"--plugin {FILE}" in command:
        sources = [f"{part.name} had the source {part.source}" for part in plugged.parts_of(identity) if not part.same]
        yield FILE, f"the plug-in as it was when {', '.join(sources)}"
    for ref in (*single_teachers(identity["teacher"]), *single_teachers(identity.get("start"))):
        if f"{ref['network']}={FILE}" in command:
            which = f"with the SHA-256 {ref['sha256']}" if "sha256" in ref else _weights(ref)
            yield FILE, f"weights of {ref['network']} {which}"
    if "sha256" in identity["data"]:
        yield "data", f"by name, since no path is stored; its content has the SHA-256 {identity['data']['sha256']}"


def _recipe(recipe: Identity) -> Iterator[Line]:
    whole = Recipe.from_mapping(recipe).full_identity()
    yield from ((name, _text(value)) for name, value in whole.items() if value is not None)


def _objective(identity: Identity) -> Iterator[Line]:
    method = identity["method"]
    parts = ", ".join(f"{name} {version}" for name, version in method.get("parts", {}).items())
    yield "method", f"{method['name']}, version {method['version']}" + (f" ({parts})" if parts else "")
    yield "loss", " + ".join(f"{weight:g} {name}" for name, weight in identity["terms"])
    yield from ((name, _text(value)) for name, value in identity["params"].items())
    yield from ((f"schedule of {name}", schedule_text(how)) for name, how in identity.get("schedules", {}).items())
    yield from ((f"stage {name}", counted(epochs, "epoch")) for name, epochs in identity.get("stages", {}).items())
    yield from ((name, _text(value)) for name, value in identity.get("shares", {}).items())
    if "start" in identity:
        yield "starts from", _weights(identity["start"])


def _teacher(run: RunRecord, identity: Identity, teachers: Measured) -> Iterator[Line]:
    if not (ref := identity["teacher"]):
        return
    yield "network", ref["network"]
    if run.teacher not in (None, ref["network"]):
        yield "of the pair", str(run.teacher)
    for one in single_teachers(ref):
        yield "weights", _weights(one) if one is ref else f"of {one['network']}: {_weights(one).removeprefix('of ')}"
    if run.teacher_sha256 and run.teacher_sha256 != ref.get("sha256"):
        yield "checksum", f"SHA-256 {run.teacher_sha256}{' of their checksums' if 'teachers' in ref else ''}"
    key = run.teacher_sha256 if "teachers" in ref else ref.get("run") or ref.get("sha256")
    if known := teachers.get((key, run.data)):
        for metric in run.protocol.metrics:
            if metric.stored in known.metrics:
                yield metric.words, f"{metric.shown(known.metrics[metric.stored]):.2f} {metric.unit}".rstrip()
        if known.claimed is not None:
            yield "published", f"{known.claimed:.2f} {run.protocol.main.unit}".rstrip()


def _weights(ref: Identity) -> str:
    if "run" in ref:
        return f"of run {ref['run']}"
    published = by_checksum(ref["sha256"])
    return f"SHA-256 {ref['sha256']}" + (f", published as {published.name}" if published else "")


def _metrics(run: RunRecord) -> Iterator[Line]:
    for which in _EPOCH_WORDS:
        found = run.metrics_of(which)
        if run.result is None or found is None:
            continue
        known = [metric for metric in (*run.protocol.metrics, *TRANSFER.values()) if metric.stored in found]
        shown = [f"{metric.words} {metric.shown(found[metric.stored]):.2f} {metric.unit}".rstrip() for metric in known]
        others = [f"{name} {found[name]:.4f}" for name in found if name not in {metric.stored for metric in known}]
        yield f"{_EPOCH_WORDS[which]} ({run.result.chosen[which][0]})", ", ".join(shown + others)


def _environment(run: RunRecord) -> Iterator[Line]:
    """Where the result came from; each origin under which it was continued adds its lines."""
    origins = [json.loads(text) for text in run.provenance.origins]
    for number, origin in enumerate(origins, start=1):
        of = f" ({number} of {len(origins)})" if len(origins) > 1 else ""
        yield from ((f"{name}{of}", _text(value)) for name, value in origin.items())


def _older(run: RunRecord, results: Iterable[Result]) -> Iterator[Line]:
    """The results by other code: its hash, what was reached, and when."""
    main = run.protocol.main
    for result in results:
        reached = result.chosen.get("last", (0, {}))[1].get(main.stored)
        shown = "no result" if reached is None else f"{main.words} {main.shown(reached):.2f} {main.unit}".rstrip()
        yield result.code, f"{shown}, {f'finished {result.finished}' if result.finished else 'unfinished'}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def curves(history: Iterable[EpochRecord]) -> Iterator[Curve]:
    """Losses, terms, metrics and learning rate over the epochs, stage by stage."""
    stages: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for record in history:
        found = stages.setdefault(record.stage, {})
        for kind, name, value in _numbers(record):
            found.setdefault((kind, name), {})[record.epoch] = value
    for stage, numbers in stages.items():
        for (kind, name), values in numbers.items():
            yield Curve(stage, kind, name, tuple(values), tuple(values.values()))


def _numbers(record: EpochRecord) -> Iterator[tuple[str, str, float]]:
    yield "loss", "train", record.train_loss
    if record.test_loss is not None:
        yield "loss", "test", record.test_loss
    yield from (("term", name, value) for name, value in record.terms.items())
    yield from (("metric", name, value) for name, value in record.metrics.items())
    yield "lr", "lr", record.lr
