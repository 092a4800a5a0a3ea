"""Resolve a user's request into planned runs and their prerequisites."""

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from kdtable import models, papers, tasks
from kdtable.data import spec as data_spec
from kdtable.data.names import spelled
from kdtable.data.spec import DETECTION, IMAGENET, STREAMED, DataSpec
from kdtable.data.validation import hold_out
from kdtable.errors import BadRequest
from kdtable.methods import CLASSIFICATION, get
from kdtable.methods import base_name as base_of_method
from kdtable.methods.objective import Objective, Params
from kdtable.methods.parts.maps import without_maps
from kdtable.models.foreign import is_foreign
from kdtable.models.names import NETWORKS, base_name, weights_of
from kdtable.models.sums import networks_of
from kdtable.numerics.names import PRECISIONS, TEACHER_CACHES
from kdtable.papers import Pair, Paper, Row
from kdtable.planning.cohorts import CACHED_FEATURES, PlannedRun, teacher_features
from kdtable.planning.overrides import Overrides
from kdtable.planning.recipe_checks import check_cache, check_views
from kdtable.planning.recipe_of import in_epochs, recipe_of
from kdtable.planning.request import DataRequest, FindStart, FindTeacher, Request
from kdtable.planning.run import Run, Sharding
from kdtable.planning.selection import parse_pairs
from kdtable.planning.several_teachers import find_all, needs_one_teacher
from kdtable.planning.task_checks import check_networks, check_task
from kdtable.planning.teacher_refs import (
    FileTeacher,
    MissingTeacher,
    NetworkRef,
    RunTeacher,
    SeveralTeachers,
    TeacherRef,
    single_refs,
)
from kdtable.planning.why_apart import why_apart
from kdtable.recipes.recipe import Recipe, in_proportion

if TYPE_CHECKING:
    from kdtable.methods.base import Method
    from kdtable.models.outputs import Outputs


def _at_random(network: str, data: DataSpec) -> None:
    """Students start from random weights, unless their paper says otherwise."""


def resolve(request: Request, find_teacher: FindTeacher, find_start: FindStart = _at_random) -> tuple[PlannedRun, ...]:
    """The planned runs of a request, then their prerequisites (a teacher's heads, an assistant).

    Args:
        request: the user's request.
        find_teacher: returns the weights of a teacher for a data set.
        find_start: returns the weights that the user wants a student to start from.

    Raises:
        BadRequest: an unknown name, an unusable value, or a missing teacher.
    """
    plain = papers.load(request.paper)
    request = _spelled(request, plain)
    _check(request)
    overrides = Overrides(request.changes.overrides)
    planned_runs: list[PlannedRun] = []
    prerequisites: dict[str, PlannedRun] = {}
    for data, selected in _selection(request, plain).items():
        wanted = request.data
        name = _with_folder(data, wanted)
        whole = plain.data_spec(name, wanted.image_size, skip_unreadable=wanted.skip_unreadable)
        spec = hold_out(whole, wanted.validation)
        check_task(plain, spec)
        paper = plain.on(spec.kind).read_as(request.reading)
        rows = {name: paper.row(name) for _, name in selected}
        resolver = _Resolver(request, paper, spec, (find_teacher, find_start), overrides)
        planned_runs += [resolver.planned(pair, rows[name], seed) for pair, name in selected for seed in request.seeds]
        prerequisites |= resolver.prerequisites
    overrides.check_all_used(may_repeat=request.changes.may_repeat)
    known = {planned.run.id for planned in planned_runs}
    return (*planned_runs, *(planned for run_id, planned in prerequisites.items() if run_id not in known))


def _spelled(request: Request, paper: Paper) -> Request:
    """The request in our spelling: data set ``cifar100`` for CIFAR-100, row ``crd+kd`` for KD+CRD."""
    data = request.data.name
    named = replace(request.data, name=None if data is None else spelled(data))
    return replace(request, data=named, methods=[paper.spelled(row) for row in request.methods])


def _with_folder(data: str, wanted: DataRequest) -> str:
    """The name of a data set, with its folder if it is unpacked under the data root."""
    if data in (*STREAMED, *DETECTION) and wanted.root is not None and (wanted.root / data).is_dir():
        return f"{data}:{wanted.root / data}"
    return data


def _selection(request: Request, paper: Paper) -> dict[str, list[tuple[Pair, str]]]:
    """Selected pairs and rows by data set: the request's, else that of their tables, else the paper's.

    If the request names a data set of some of the paper's tables, "all" means the pairs of these tables. If it names
    no rows, each table's own rows are selected.
    """
    kind = (request.data.name or "").partition(":")[0]
    tables = [table for name, table in paper.tables.items() if "all" in request.pairs or name in request.pairs]
    if kind in {table.data for table in tables}:
        tables = [table for table in tables if table.data == kind or table.name in request.pairs]
    found: dict[str, dict[tuple[Pair, str], None]] = {}
    for table in tables:
        rows = request.methods or table.trained
        selected = found.setdefault(request.data.name or table.data, {})
        selected.update(dict.fromkeys((pair, row) for pair in table.pairs for row in rows))
    others = [text for text in request.pairs if text != "all" and text not in paper.tables]
    rows = request.methods or tuple(dict.fromkeys(row for table in paper.tables.values() for row in table.trained))
    if others:
        pairs = parse_pairs(others, paper)
        selected = found.setdefault(request.data.name or paper.data, {})
        selected.update(dict.fromkeys((pair, row) for pair in pairs for row in rows))
    if not any(found.values()):
        raise BadRequest("nothing to run: name at least one pair, as TEACHER:STUDENT, and one method")
    return {data: list(selected) for data, selected in found.items()}


def _check(request: Request) -> None:
    if request.sharding.accumulate < 1:
        raise BadRequest(f"--accumulate {request.sharding.accumulate} trains nothing: use at least 1")
    if request.sharding.sync_batch_norm and request.sharding.devices == 1:
        raise BadRequest("--sync-batch-norm needs several --devices")
    if not request.seeds:
        raise BadRequest("nothing to run: name at least one method and one seed")
    if min(request.seeds) < 0:
        raise BadRequest(f"a seed cannot be negative: {min(request.seeds)}")
    if request.precision not in PRECISIONS:
        raise BadRequest(f"unknown precision '{request.precision}': use one of {', '.join(PRECISIONS)}")
    if request.teacher_cache not in TEACHER_CACHES:
        raise BadRequest(f"--teacher-cache is one of {', '.join(TEACHER_CACHES)}, not '{request.teacher_cache}'")


class _Resolver:
    """Makes the planned runs of a request on one data set; collects ``prerequisites`` by run id."""

    def __init__(
        self,
        request: Request,
        paper: Paper,
        data: DataSpec,
        find: tuple[FindTeacher, FindStart],
        overrides: Overrides,
    ) -> None:
        self.overrides = overrides
        self.prerequisites: dict[str, PlannedRun] = {}
        self._known: dict[tuple[Pair, str, bool], PlannedRun] = {}
        self._request = request
        self._paper = paper
        self._data = data
        self._find_teacher, self._find_start = find

    def planned(self, pair: Pair, row: Row, seed: int, *, prerequisite: bool = False) -> PlannedRun:
        """Plan a row for a pair, which is resolved once for all seeds.

        ``prerequisite`` marks a run that only another run needs.
        """
        key = pair, row.name, prerequisite
        if key not in self._known:
            self._known[key] = self._resolved(pair, row, seed, prerequisite=prerequisite)
        known = self._known[key]
        return known if known.run.seed == seed else replace(known, run=known.run.of_seed(seed))

    def _resolved(self, pair: Pair, row: Row, seed: int, *, prerequisite: bool) -> PlannedRun:
        kind = tasks.get(self._paper.task)
        method = get(row.name, self._paper.task)
        student, reason = _student(pair, row, self._data)
        check_networks(pair, student, self._data, self._paper.task)
        recipe = recipe_of(self._paper, row, student, self._request, self._data, self.overrides)
        full = in_epochs(replace(self._paper.recipe, **row.recipe), self._request, self._data).epochs
        data_spec.check_batch_size(self._data, recipe.batch_size)
        _check_shards(recipe, self._request.sharding)
        _check_crop(recipe, self._data)
        check_cache(recipe, self._request.teacher_cache)
        check_views(recipe, self._paper.task)
        objective = self._objective(pair, row, student, method, recipe, full)
        reason = needs_one_teacher(pair, row, method, objective) or reason or why_apart(self._paper, row.name)
        shapes = _shapes(student, self._data)
        teacher, precision = None, self._request.precision
        if kind.needs_teacher(method, objective.terms):
            teacher, missing = self._teacher(pair, row)
            reason = reason or missing or self._inapplicable(method, objective.params, shapes, teacher)
            if not isinstance(teacher, RunTeacher | SeveralTeachers) and teacher_features(method) <= CACHED_FEATURES:
                precision += TEACHER_CACHES[self._request.teacher_cache]
        reason = reason or self._undivided(method, row.name, student) or method.unfit(recipe, objective)
        run = Run(
            row.name,
            student,
            self._data,
            recipe,
            objective,
            seed,
            precision,
            teacher,
            self._start(pair, row, student),
            self._request.sharding,
            self._test_loss(row, method),
            self._paper.task,
        )
        return PlannedRun(pair, row.name, run, reason, prerequisite, self._paper.name)

    def _undivided(self, method: "type[Method]", name: str, student: str) -> str | None:
        """Why a method cannot be trained as the request divides batches, or in its precision; ``None`` if it can."""
        sharding, precision = self._request.sharding, self._request.precision
        if sharding.accumulate > 1 and method.relates_samples:
            return f"{name} compares the images of a whole batch, which --accumulate takes apart"
        if method.keeps_gradients_apart and (sharding.parts > 1 or precision == "fp16"):
            return f"{name} keeps the gradients of two losses apart, which --devices, --accumulate and fp16 do not"
        if sharding.sync_batch_norm and is_foreign(student) and _has_own_norms(student, self._data):
            return f"{student} has batch norms of its library's own, which --sync-batch-norm cannot replace"
        return None

    def _inapplicable(
        self, method: "type[Method]", params: Params, student: "Outputs", teacher: TeacherRef
    ) -> str | None:
        from kdtable.training.build import network_norms

        shapes = [_shapes(ref.network, self._data) for ref in single_refs(teacher)]  # refuses images that are too small
        if isinstance(teacher, SeveralTeachers):
            return None  # their methods read logits alone
        if self._data.task == CLASSIFICATION and (reason := without_maps(method, student, shapes[0])):
            return reason
        norms = partial(network_norms, teacher.network, self._data.num_classes, self._data.image_size)
        return method.inapplicable_with(params, student, shapes[0], norms)

    def _objective(
        self, pair: Pair, row: Row, student: str, method: "type[Method]", recipe: Recipe, full: int
    ) -> Objective:
        """The row's objective with the user's overrides.

        The row's schedules and early stages are scaled with the number of epochs; the user's schedules only from the
        length that they name (``of:240``).
        """
        overrides = self.overrides.on(pair.teacher, pair.student)
        terms = overrides.weights(row.terms_for(pair.teacher, student))
        stated = row.params_for(student, pair.teacher)
        params = overrides.params(method.hyper, stated, terms, base_of_method(row.name, self._paper.task))
        schedules = {name: schedule.scaled(recipe.epochs, full) for name, schedule in row.schedules.items()}
        stages = {name: n and max(1, in_proportion(n, recipe.epochs, full)) for name, n in row.stages.items()}
        try:
            changed = overrides.schedules(terms, schedules, recipe.epochs)
            return Objective.of(method.hyper, terms, params, changed, stages)
        except ValueError as error:
            raise BadRequest(f"method {row.name}: {error}") from error

    def _test_loss(self, row: Row, method: "type[Method]") -> bool | None:
        """Whether to measure the loss on the test images; ``None`` if the row does not say."""
        if row.test_loss is None:
            return None
        wanted = self.overrides.value("test_loss", bool, row.test_loss)
        if wanted and method.of_training_images:
            raise BadRequest(f"method {row.name}: its loss is of training images alone, so test_loss must be false")
        return wanted

    def _start(self, pair: Pair, row: Row, student: str) -> NetworkRef | None:
        """The weights that a student starts from; ``None`` for random initialisation."""
        if self._starts_from_teacher(row) and len(networks_of(pair.teacher)) == 1:
            return self._find_teacher(pair.teacher, self._data)
        if (given := self._find_start(base_name(student), self._data)) is not None:
            return given
        if row.pretrained and self.overrides.value("pretrained", bool, True):
            return replace(self._find_teacher(weights_of(student), IMAGENET), classes=IMAGENET.num_classes)
        return None

    def _starts_from_teacher(self, row: Row) -> bool:
        if "{teacher}" not in row.student:
            return False
        return self.overrides.value("from_teacher", bool, row.from_teacher)

    def _teacher(self, pair: Pair, row: Row) -> tuple[TeacherRef, str | None]:
        """The teacher of a row: the pair's own or several, or one that a run of the paper's first seed derives from it.

        Returns:
            The teacher; and why the derived teacher that the row needs is impossible, else ``None``.
        """
        if not row.taught_by or len(networks_of(pair.teacher)) > 1:
            return find_all(pair.teacher, self._data, self._find_teacher), None
        own = self._teacher_below(pair, self._paper.row(row.taught_by))
        assistant = self._assistant(pair, row) if row.assistant else pair.teacher
        if assistant is None:
            return own, "no network of the student's family lies between the two (--set assistant=NETWORK names one)"
        below, seed = Pair(pair.teacher, assistant), self._paper.seeds[0]
        planned = self.planned(below, self._paper.row(row.taught_by), seed, prerequisite=True)
        if planned.not_applicable is not None:
            return own, f"{row.taught_by} on {below} cannot be run: {planned.not_applicable}"
        self.prerequisites[planned.run.id] = planned
        return RunTeacher(planned.run.student, *_inputs(planned.run), planned.run.id, own.sha256), None

    def _teacher_below(self, pair: Pair, row: Row) -> FileTeacher | MissingTeacher:
        """The pair's own teacher, for a row that derives another from it; may be missing if that row reads none."""
        try:
            return self._find_teacher(pair.teacher, self._data)
        except BadRequest:
            if get(row.name, self._paper.task).needs_teacher(row.terms) or self._starts_from_teacher(row):
                raise
            return MissingTeacher(pair.teacher, self._data.mean, self._data.std)

    def _assistant(self, pair: Pair, row: Row) -> str | None:
        """The user's assistant; else the row's for the data set, if it lies between the pair; else the middle one."""
        if chosen := self.overrides.value("assistant", str, ""):
            return models.checked(chosen)
        usual = row.assistant.get(self._data.kind)
        found = between(pair)
        return usual if usual in found else next(iter(found), None)


def _check_shards(recipe: Recipe, sharding: Sharding) -> None:
    if recipe.batch_size < 2 * sharding.parts:
        raise BadRequest(
            f"a batch of {recipe.batch_size} images is too small for {sharding.devices} devices and --accumulate "
            f"{sharding.accumulate}: every part needs two"
        )


def _check_crop(recipe: Recipe, data: DataSpec) -> None:
    if not data.uncropped and recipe.crop_fill == "reflect" and recipe.crop_padding >= data.image_size:
        raise BadRequest(
            f"crop_padding {recipe.crop_padding} is too wide: images of {data.name} are {data.image_size} pixels wide, "
            f"and their reflections narrower"
        )


def _student(pair: Pair, row: Row, data: DataSpec) -> tuple[str, str | None]:
    """The network that a row trains for a pair, and why it cannot: the student has no such variant."""
    try:
        student = models.canonical(row.student.format(teacher=pair.teacher, student=pair.student))
    except BadRequest as error:
        return pair.student, str(error)
    base = base_name(student)
    if base != student and is_foreign(base) and not _shapes(base, data).stages:
        return pair.student, f"{base} shows no feature maps for extra classifiers"
    return student, None


def _inputs(run: Run) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The input normalisation that a run's student is trained with."""
    return (run.start.mean, run.start.std) if run.start else (run.data.mean, run.data.std)


def between(pair: Pair) -> list[str]:
    """Networks of the student's family whose depth lies between the student's and the teacher's.

    They are sorted by distance to the middle depth; of two equally near, the shallower comes first.
    """
    # A number after a V is a version, not a depth (MobileNetV2).
    student, teacher = (re.fullmatch(r"(\D*[^\dV])(\d+)(.*)", name) for name in (pair.student, pair.teacher))
    if student is None or teacher is None:
        return []
    low, high = int(student[2]), int(teacher[2])
    depths = sorted(range(low + 1, high), key=lambda depth: abs(2 * depth - low - high))
    names = [f"{student[1]}{depth}{student[3]}" for depth in depths]
    return [name for name in names if name in NETWORKS]


def _has_own_norms(network: str, data: DataSpec) -> bool:
    from kdtable.training.build import has_own_norms

    return has_own_norms(network, data.num_classes, data.image_size)


def _shapes(network: str, data: DataSpec) -> "Outputs":
    from kdtable.training.build import network_shapes

    try:
        return network_shapes(network, data.num_classes, data.image_size, tasks.get(data.task))
    except RuntimeError as error:
        size = f"{data.image_size} x {data.image_size}"
        why = f" ({error})" if models.names.source(network) else ""  # of our own networks we know why
        raise BadRequest(f"{network} cannot take images of {size} pixels, as {data.name} has them{why}") from error
