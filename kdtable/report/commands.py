"""The command that makes a stored run."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from kdtable import papers
from kdtable.data.names import READ
from kdtable.data.spec import BUILT_IN, CROP_SIZE, DETECTION, STREAMED
from kdtable.errors import BadRequest
from kdtable.models.names import stored_base as base_name
from kdtable.numerics.names import split_precision
from kdtable.papers import Paper, Row
from kdtable.recipes.metrics import VALIDATED
from kdtable.recipes.recipe import Recipe
from kdtable.report import plugged
from kdtable.report.labels import MEASURED, schedule_text
from kdtable.store.records import RunRecord, single_teachers
from kdtable.teachers.manifest import by_checksum

Identity = Mapping[str, Any]
#: An option and its value; an empty value is a flag.
Options = list[tuple[str, str]]

#: Recipe fields with options of their own, and those that follow from the number of epochs.
_OPTIONS: Final = {"epochs": "--epochs", "iterations": "--iterations", "batch_size": "--batch-size", "lr": "--lr"}
#: Stands for a file whose place the store does not know.
FILE: Final = "FILE"


def command_of(run: RunRecord, prerequisites: Iterable[RunRecord] = ()) -> str | None:
    """The command that trains a run, with the fewest options; ``None`` if its paper or row is not known here.

    The store knows no paths: a data set of the user's stands there by its name (``npz:tiny.npz``), a teacher's weights
    that nobody published as ``--teacher resnet56=FILE``.

    Args:
        run: the stored run.
        prerequisites: the runs that it starts from. Those that the same command trains have its settings, too; a
            teacher that was trained before has others.
    """
    try:
        paper = papers.load(run.paper)
        row = paper.row(run.row)
    except BadRequest:
        return None
    made = [one for one in prerequisites if one.row == row.taught_by]
    return min((_command(run, made, paper, reading) for reading in ("code", *paper.readings)), key=len)


def _command(run: RunRecord, prerequisites: Iterable[RunRecord], paper: Paper, reading: str) -> str:
    student = base_name(run.student)
    options: Options = [("--paper", paper.name)] if paper.name != papers.DEFAULT_PAPER else []
    options += [("--pairs", f"{run.teacher or student}:{student}"), ("--methods", run.row), ("--seeds", f"{run.seed},")]
    options += [("--reading", reading)] if reading != "code" else []
    options += _data(run, paper)
    options += plugged.options(run.protocol.identity, FILE)
    settings = [option for one in (run, *prerequisites) for option in _settings(one, paper, reading)]
    words = [word for option in dict.fromkeys(options + settings) for word in option if word]
    return shlex.join(["kdtable", "run", *words])


def _data(run: RunRecord, paper: Paper) -> Iterator[tuple[str, str]]:
    content = run.protocol.identity["data"]
    kind = content["kind"]
    if held_out := content.get(VALIDATED):
        yield "--validation", str(held_out)
    if kind in BUILT_IN:
        if kind != paper.data:
            yield "--data", kind
        if size := content.get("image_size"):
            yield "--image-size", str(size)
        return
    if content["kind"] not in (*STREAMED, *READ, *DETECTION):  # of a plug-in that is not loaded
        yield "--data", kind
        return
    size = content.get("image_size")
    name = run.data.removesuffix(f"-{size}").rpartition("-")[0]  # NAME-HASH, or NAME-HASH-SIZE
    yield "--data", f"{kind}:{name}{'.npz' if kind == 'npz' else ''}"
    if size is not None and (size != CROP_SIZE or kind not in STREAMED):
        yield "--image-size", str(size)
    if any(run.provenance.skipped):
        yield "--skip-unreadable", ""


def _settings(run: RunRecord, paper: Paper, reading: str) -> Iterator[tuple[str, str]]:
    """Options that change a row's own settings to those of a run."""
    identity = run.protocol.identity
    kind = identity["data"]["kind"]
    chosen = paper.on(kind).read_as(reading)
    row = chosen.row(run.row)
    yield from _recipe(Recipe.from_mapping(identity["recipe"]), _usual(chosen, row, run.student, kind))
    full = replace(chosen.recipe, **row.recipe).epochs
    usual = {name: schedule.scaled(run.epochs, full).identity() for name, schedule in row.schedules.items()}
    yield from _objective(run, identity, row, usual)
    precision, cache = split_precision(run.precision)
    yield from [("--precision", precision)] if precision != "fp32" else []
    yield from [("--teacher-cache", cache)] if cache != "off" else []
    yield from _sharing(identity.get("shares", {}))
    yield from _weights(identity, run)


def _usual(paper: Paper, row: Row, student: str, kind: str) -> Recipe:
    recipe = replace(paper.recipe_for(student), **row.recipe)
    return recipe.for_image_folders() if kind in (*STREAMED, *DETECTION) else recipe


def _recipe(given: Recipe, usual: Recipe) -> Iterator[tuple[str, str]]:
    """Options for the fields of a recipe that differ from the usual one at as many epochs, and are read."""
    if given.iterations:
        at_length = usual.over(given.iterations, max(1, given.iterations // given.epochs))
        at_length = replace(at_length, iterations=usual.iterations, epochs=given.epochs)
    else:
        at_length = usual if given.epochs == usual.epochs else usual.scaled(given.epochs)
        at_length = replace(at_length, epochs=usual.epochs)
    before, values = at_length.full_identity(), given.full_identity()
    idle = given.idle()
    for name in [name for name, value in values.items() if value != before[name] and name not in idle]:
        yield (_OPTIONS[name], _text(values[name])) if name in _OPTIONS else _set(name, values[name])


def _objective(run: RunRecord, identity: Identity, row: Row, usual: Identity) -> Iterator[tuple[str, str]]:
    """``--set`` for weights, hyper-parameters, schedules and initial weights that are not the row's own."""
    weights = row.terms_for(run.teacher or base_name(run.student), run.student)
    yield from (_set(f"weight.{name}", value) for name, value in identity["terms"] if weights.get(name) != value)
    params = json.loads(json.dumps(row.params_for(run.student, run.teacher)))
    if row.test_loss is not None:
        params["test_objective"] = row.test_loss
    for name, value in identity["params"].items():
        if name not in params or params[name] != value:
            yield _set("test_loss" if name in MEASURED else name, value)
    changing = identity.get("schedules", {})
    for name in [name for name in {**usual, **changing} if usual.get(name, {}) != changing.get(name, {})]:
        yield _set(f"schedule.{name}", schedule_text(changing.get(name, {})))
    yield from _started(identity, row)
    teacher = identity["teacher"]
    if row.assistant and teacher and teacher["network"] != run.teacher:
        yield _set("assistant", teacher["network"])


def _started(identity: Identity, row: Row) -> Iterator[tuple[str, str]]:
    """``--set`` for whether a student starts from the weights that its paper names."""
    if identity.get("start", {}).get("given"):
        return
    started, own = "start" in identity, row.from_teacher if "{teacher}" in row.student else row.pretrained
    if started != own:
        yield _set("from_teacher" if "{teacher}" in row.student else "pretrained", started)


def _sharing(shares: Identity) -> Iterator[tuple[str, str]]:
    if shares.get("devices", 1) > 1:
        yield "--devices", ",".join(map(str, range(shares["devices"])))
    if shares.get("accumulate", 1) > 1:
        yield "--accumulate", str(shares["accumulate"])
    if shares.get("sync_batch_norm"):
        yield "--sync-batch-norm", ""


def _weights(identity: Identity, run: RunRecord) -> Iterator[tuple[str, str]]:
    """Options for weights that the user chose, or that were neither published nor trained by kdtable."""
    for ref in (*single_teachers(identity["teacher"]), *single_teachers(identity.get("start"))):
        unknown = "sha256" in ref and by_checksum(ref["sha256"]) is None
        if unknown or ref.get("given"):
            yield "--start" if ref.get("given") else "--teacher", f"{ref['network']}={FILE}"
        if unknown and any(ref[name] != identity["data"][name] for name in ("mean", "std")):
            yield from ((f"--input-{name}", f"{ref['network']}={_text(ref[name])}") for name in ("mean", "std"))


def _set(name: str, value: Any) -> tuple[str, str]:
    return "--set", f"{name}={_text(value)}"


def _text(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
