"""From a request to the runs that it asks for, and from those that are missing to cohorts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kdtable import models, papers
from kdtable.data import spec as data_spec
from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest, unknown
from kdtable.methods import get
from kdtable.papers import DEFAULT_PAPER, Pair, Paper
from kdtable.recipe import Recipe, in_proportion
from kdtable.runs import PRECISIONS, Run, TeacherRef
from kdtable.settings import Settings

if TYPE_CHECKING:
    from kdtable.models.outputs import Outputs

#: A larger count is one seed that was meant as a list.
MOST_SEEDS = 1000

#: Gives the weights of a network for a data set, or says in a `BadRequest` how to get them.
FindTeacher = Callable[[str, DataSpec], TeacherRef]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for, in the user's words.

    Attributes:
        pairs: ``all``, names of tables, or TEACHER:STUDENT.
        methods: row names.
        seeds: the seeds themselves.
        paper: whose recipe and rows are used.
        data: the data set; the paper's own where it is ``None``.
        epochs: total of the main stage; milestones move in proportion.
        batch_size: images per step.
        lr: learning rate of every student.
        settings: KEY=VALUE changes of recipe fields, weights (``weight.at``) and hyper-parameters (``tau``).
        precision: name of the precision.
    """

    pairs: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    paper: str = DEFAULT_PAPER
    data: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    settings: Sequence[str] = ()
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run as part of the request: which pair and row it stands for.

    ``not_applicable`` says why the row's method cannot be run on this pair; such a run is never trained.
    """

    pair: Pair
    row: str
    run: Run
    not_applicable: str | None = None


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """Runs that are trained together: one batch stream, and one teacher or none."""

    teacher: TeacherRef | None
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The request resolved: every cell, and the cohorts of the runs that are missing."""

    cells: tuple[Cell, ...]
    cohorts: tuple[CohortPlan, ...]
    statuses: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, Run]:
        """The distinct runs by id; pairs with one student share its vanilla runs."""
        return {cell.run.id: cell.run for cell in self.cells}

    @property
    def done(self) -> int:
        """How many of the distinct runs the store has finished."""
        return sum(self.statuses.get(run_id) == "done" for run_id in self.runs)


def resolve(request: Request, find_teacher: FindTeacher) -> tuple[Cell, ...]:
    """Every cell of the request.

    Args:
        request: in the user's words.
        find_teacher: gives the weights of a teacher for a data set.

    Raises:
        BadRequest: an unknown name, a value that cannot be used, or a teacher that is not there.
    """
    paper = papers.load(request.paper)
    pairs = parse_pairs(request.pairs, paper)
    rows = [paper.row(name) for name in dict.fromkeys(request.methods)]
    if not rows or not request.seeds:
        raise BadRequest("nothing to run: name at least one method and one seed")
    if min(request.seeds) < 0:
        raise BadRequest(f"a seed cannot be negative: {min(request.seeds)}")
    if request.precision not in PRECISIONS:
        raise BadRequest(f"unknown precision '{request.precision}': use one of {', '.join(PRECISIONS)}")
    data = data_spec.resolve(request.data or paper.data)
    settings = Settings(request.settings)
    cells = []
    for pair in pairs:
        recipe = _recipe(paper, pair.student, request, settings)
        data_spec.check_batch_size(data, recipe.batch_size)
        shapes = _shapes(pair.student, data)
        for row in rows:
            terms, params = settings.weights(row.terms), settings.params(row.params_for(pair.student))
            full = paper.recipe.epochs
            stages = {name: max(1, in_proportion(n, recipe.epochs, full)) for name, n in row.stages.items()}
            check_params(row.name, params)
            teacher, reason = None, None
            if get(row.name).needs_teacher(terms):
                teacher = find_teacher(pair.teacher, data)
                reason = get(row.name).inapplicable(shapes, _shapes(pair.teacher, data))
            for seed in request.seeds:
                run = Run(row.name, pair.student, data, recipe, terms, params, seed, request.precision, teacher, stages)
                cells.append(Cell(pair, row.name, run, reason))
    settings.check_all_used()
    return tuple(cells)


def _shapes(network: str, data: DataSpec) -> "Outputs":
    from kdtable.training.build import network_shapes

    try:
        return network_shapes(network, data.num_classes, data.image_size)
    except RuntimeError as error:
        size = f"{data.image_size} x {data.image_size}"
        raise BadRequest(f"{network} cannot take images of {size} pixels, as {data.name} has them") from error


def check_params(row: str, params: Mapping[str, Any]) -> None:
    """Raise `BadRequest` for a hyper-parameter that the row's method cannot use."""
    try:
        get(row).check(params)
    except ValueError as error:
        raise BadRequest(f"method {row}: {error}") from error


def make(cells: Sequence[Cell], statuses: Mapping[str, str]) -> Plan:
    """The plan: cohorts of the runs that are not done yet, seed by seed; what failed is tried again."""
    wanted = {cell.run.id: cell.run for cell in cells if cell.not_applicable is None}
    missing = [run for run_id, run in wanted.items() if statuses.get(run_id) != "done"]
    return Plan(tuple(cells), tuple(cohorts(missing)), dict(statuses))


def cohorts(runs: Iterable[Run]) -> list[CohortPlan]:
    """Group runs that share batch stream and teacher; those without a teacher join one that has one."""
    streams: dict[tuple[Any, ...], dict[TeacherRef | None, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        stream = (run.seed, run.data.key, run.recipe.batch_size, run.recipe.crop_padding, run.precision)
        streams.setdefault(stream, {}).setdefault(run.teacher, []).append(run)
    planned = []
    for by_teacher in streams.values():
        alone = by_teacher.pop(None, [])
        if not by_teacher:
            planned.append(CohortPlan(None, tuple(alone)))
        for position, (teacher, taught) in enumerate(by_teacher.items()):
            planned.append(CohortPlan(teacher, tuple((alone if position == 0 else []) + taught)))
    return planned


def parse_pairs(texts: Sequence[str], paper: Paper) -> list[Pair]:
    """Pairs from ``all``, table names, and TEACHER:STUDENT in any accepted spelling.

    Raises:
        BadRequest: an unknown or ambiguous name.
    """
    found: dict[Pair, None] = {}
    for text in texts:
        for pair in _pairs_of(text, paper):
            found.setdefault(pair)
    if not found:
        raise BadRequest("nothing to run: name at least one pair, as TEACHER:STUDENT")
    return list(found)


def _pairs_of(text: str, paper: Paper) -> list[Pair]:
    if text == "all":
        return [pair for table in paper.tables.values() for pair in table.pairs]
    if text in paper.tables:
        return list(paper.tables[text].pairs)
    teacher, colon, student = text.partition(":")
    if not colon:
        known = [
            "all",
            *paper.tables,
            *(str(pair) for table in paper.tables.values() for pair in table.pairs),
        ]
        raise unknown("pair", text, known)
    return [Pair(models.canonical(teacher), models.canonical(student))]


def parse_seeds(text: str) -> list[int]:
    """``3`` means seeds 1, 2, 3; ``7,8,9`` and ``7,`` name them.

    Raises:
        BadRequest: anything else, or no seed at all.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        numbers = [int(part) for part in parts]
    except ValueError as error:
        raise BadRequest(f"--seeds takes a count (3) or a list (7,8,9), not '{text}'") from error
    if "," not in text and numbers:
        if numbers[0] > MOST_SEEDS:
            raise BadRequest(f"--seeds {text} is a count of more than {MOST_SEEDS}; to name one seed write {text},")
        numbers = list(range(1, numbers[0] + 1))
    if not numbers or min(numbers) < 0:
        raise BadRequest(f"--seeds {text} asks for no run: use a count of at least 1, or a list such as 7,8,9")
    return list(dict.fromkeys(numbers))


def _recipe(paper: Paper, student: str, request: Request, settings: Settings) -> Recipe:
    recipe = paper.recipe_for(student)
    if request.epochs is not None:
        if request.epochs < 1:
            raise BadRequest(f"--epochs {request.epochs} trains nothing: use at least 1")
        recipe = recipe.scaled(request.epochs)
    if request.batch_size is not None:
        recipe = replace(recipe, batch_size=request.batch_size)
    if request.lr is not None:
        recipe = replace(recipe, lr=request.lr)
    recipe = settings.recipe(recipe)
    if reason := recipe.unusable():
        raise BadRequest(reason)
    return recipe
