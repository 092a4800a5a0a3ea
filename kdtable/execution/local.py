"""Training in this process, one cohort after another."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtable import data
from kdtable.data.sets import Images
from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest
from kdtable.execution.jobs import Assignment, Place, places, train_in_workers
from kdtable.execution.memory import fitting, halves, release_freed_memory
from kdtable.execution.recorder import Progress, Recorder, Unreachable
from kdtable.execution.share import Share
from kdtable.execution.together import Follower, Team, dismiss, gathered
from kdtable.models.branched import Branched
from kdtable.models.network import Network
from kdtable.plan import Cell, CohortPlan, make
from kdtable.provenance import provenance
from kdtable.runs import Run, TeacherRef
from kdtable.store import NoStore, Store, Worker
from kdtable.store.files import STUDENT, clear, run_folder
from kdtable.teachers.cache import cache_of
from kdtable.teachers.claims import shortfall
from kdtable.teachers.files import load_into, read_weights
from kdtable.training import checkpoint, precision
from kdtable.training.build import build_method, build_student, build_teacher
from kdtable.training.cohort import Cohort, OutOfMemory
from kdtable.training.member import Member
from kdtable.training.numerics import fingerprint, fix_threads, place
from kdtable.training.precision import Precision
from kdtable.training.task import Classification
from kdtable.training.teacher import FrozenTeacher, Teacher
from kdtable.world import ALONE, NO_MEMORY, World, failure


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution ended: numbers of distinct runs.

    ``unfinished`` are those that are left when every worker process was killed.
    """

    done: int
    failed: int
    unfinished: int


def execute(
    cells: Sequence[Cell],
    results: Path,
    *,
    device: torch.device,
    data_root: Path,
    progress: Progress,
    url: str | None = None,
    keep: str = "last",
    jobs: str = "1",
    team: Team | None = None,
) -> Outcome:
    """Train what the store lacks of ``cells``; returns when every run is done or has failed, or no worker is left.

    What other processes train of it at the same time is waited for. On an interruption the runs in training are
    released, to be continued by the next call. Nothing is written before the request is known to be good.

    Args:
        cells: the request.
        results: folder of the store.
        device: where networks are computed.
        data_root: where data sets are, or are downloaded to.
        progress: is told what happens.
        url: of the store's database, if that is not in the folder.
        keep: "last", "all" or "none": which weights of a done run stay on disk.
        jobs: number of worker processes, or "auto".
        team: processes that train every run together.

    Raises:
        BadRequest: the data cannot be had, a precision does not fit the device, or the store cannot be used.
    """
    chosen = precision.choose(cells[0].run.precision, device)
    ids = {cell.run.id for cell in cells}
    runnable = {cell.run.id: cell.run for cell in cells if cell.not_applicable is None}
    known = known_statuses(results, ids, url)
    at = places(jobs, device, len(make(cells, known).cohorts))
    unfinished = any(known[run_id] != "done" for run_id in runnable)
    if unfinished:
        specs = {run.data.key: run.data for run in runnable.values()}
        sets = {key: data.load(spec, data_root) for key, spec in specs.items()}
    _clear_done(results, [run_id for run_id in runnable if known[run_id] == "done"], progress)
    assignment = Assignment(tuple(cells), results, data_root, url, keep)
    if not unfinished:
        dismiss(team, assignment)
    if not unfinished and "missing" not in known.values():
        return Outcome(len(runnable), 0, 0)
    fix_threads()
    with closing(Store(results, url)) as store:
        store.plan([store_row(cell) for cell in cells])
        if unfinished:
            store.reopen(runnable)
            store.train_again({need for run in runnable.values() if known[run.id] != "done" for need in run.needs})
            if len(at) > 1:
                train_in_workers(at, assignment, progress)
            else:
                with gathered(team, assignment) as world:
                    train_missing(cells, store, sets, chosen, progress, keep, world=world)
        ended = list(store.statuses(runnable).values())
    done, failed = ended.count("done"), ended.count("failed")
    return Outcome(done, failed, len(runnable) - done - failed)


def train_planned(place: Place, assignment: Assignment, progress: Progress) -> None:
    """The part of one of several processes in :func:`execute`: train what is planned, with a store of its own.

    Raises:
        BadRequest: as in :func:`execute`.
    """
    fix_threads()
    cells = assignment.cells
    chosen = precision.choose(cells[0].run.precision, torch.device(place.device))
    specs = {cell.run.data.key: cell.run.data for cell in cells if cell.not_applicable is None}
    sets = {key: data.load(spec, assignment.data_root) for key, spec in specs.items()}
    with closing(Store(assignment.results, assignment.url)) as store:
        train_missing(cells, store, sets, chosen, progress, assignment.keep, place.sharers)


def known_statuses(results: Path, ids: Iterable[str], url: str | None = None) -> dict[str, str]:
    """Status of each run in a store that may not exist yet: "missing" where it is not known."""
    wanted = dict.fromkeys(ids, "missing")
    try:
        store = Store(results, url, create=False)
    except NoStore:
        return wanted
    with closing(store):
        return wanted | store.statuses(wanted)


def _clear_done(results: Path, done: Iterable[str], progress: Progress) -> None:
    """Remove what a process that was killed while it finished a run had no time to remove."""
    for run_id in done:
        try:
            clear(run_folder(results, run_id), done=True)
        except OSError as error:
            progress.note(f"what is left over of run {run_id} cannot be removed: {error}")


def train_missing(
    cells: Sequence[Cell],
    store: Store,
    sets: Mapping[str, Images],
    chosen: Precision,
    progress: Progress,
    keep: str = "last",
    sharers: int = 1,
    world: World = ALONE,
) -> None:
    """Train planned runs of ``cells`` until each of them is done or has failed, here or elsewhere.

    Several processes may do so on one store. Each claims a cohort when it begins to train it, so that the others
    can take the next ones, and at the end waits for what they still train: if one of them dies, its runs are
    continued here. What failed is not tried again.
    """
    origin = provenance(fingerprint(chosen.device))
    needed = {need for cell in cells for need in cell.run.needs}
    with Worker(store) as worker:
        share = Share(cells, store, worker, progress)
        while share.unfinished():
            _fail_unreachable(share, store, worker, progress, origin, keep)
            free = share.cohorts()
            if not free:
                share.wait()
                continue
            first, *parts = fitting(free[0], chosen.device, max(sharers, world.size))
            if cohort := share.claim(first, origin):
                teacher = cohort.teacher.network if cohort.teacher else None
                progress.cohort(len(parts) + len(free) - 1, list(cohort.runs), teacher)
                world.first(cohort)
                keeper = Keeper(store, worker, {run.id: run for run in cohort.runs}, progress, keep, needed)
                try:
                    train_in_parts(cohort, keeper, store.folder, sets[cohort.runs[0].data.key], chosen, world)
                finally:
                    worker.release(run.id for run in cohort.runs)


def _fail_unreachable(
    share: Share, store: Store, worker: Worker, progress: Progress, origin: Mapping[str, Any], keep: str
) -> None:
    """Mark as failed what cannot begin any more, with the reason of the run that it needs."""
    for run, need in share.unreachable():
        if worker.claim([run.id], origin):
            (first,) = store.all_runs([need])
            what = f"{first['row']} of {first['student']}, seed {first['seed']}"
            Recorder(store, worker, {run.id: run}, progress, keep).fail(run.id, Unreachable(what, str(first["reason"])))


class Keeper(Recorder):
    """A recorder that also knows what of its cohort is still ours, and keeps what its teacher reached."""

    def left(self, cohort: CohortPlan) -> tuple[Run, ...]:
        """What is neither done nor failed, and not taken over."""
        held = set(self._worker.claims())
        return tuple(run for run in cohort.runs if run.id in held)

    def measure(self, cohort: CohortPlan, network: Network, task: Classification) -> None:
        """See :func:`measure_teacher`; the user is told of a teacher that is too weak."""
        if cohort.teacher is not None and (warning := measure_teacher(self._store, cohort.teacher, network, task)):
            self.note(warning)


def train_in_parts(
    cohort: CohortPlan,
    keeper: Keeper | Follower,
    results: Path,
    images: Images,
    chosen: Precision,
    world: World = ALONE,
) -> None:
    """Train a cohort; if memory runs out, its halves one after the other, each from its last checkpoints."""
    try:
        _train_cohort(cohort, keeper, results, images, chosen, world)
        return
    except BadRequest:
        raise
    except OutOfMemory as error:
        reason = str(error).partition("\n")[0]
    except Exception as error:
        # What is not one member's own (the teacher's pass, the batches) ends the cohort, not the grid.
        for run in keeper.left(cohort):
            keeper.fail(run.id, error)
        return
    # Not in the handler, where the traceback would keep the members and their memory.
    release_freed_memory(chosen.device)
    left = replace(cohort, runs=world.first(keeper.left(cohort)))
    parts = halves(left) if len(left.runs) > 1 else (left,)
    how = "in two parts" if len(parts) > 1 else "alone"
    keeper.note(f"memory ran out with {len(cohort.runs)} runs together, so what is left goes on {how} ({reason})")
    for part in parts:
        if part.runs:
            train_in_parts(part, keeper, results, images, chosen, world)


def _train_cohort(
    cohort: CohortPlan,
    keeper: Keeper | Follower,
    results: Path,
    images: Images,
    chosen: Precision,
    world: World,
) -> None:
    first = cohort.runs[0]
    task = Classification(images, first.recipe, first.seed, chosen, replace(world, accumulate=first.accumulate))
    network: Network | None = None
    teacher: Teacher | None = None
    if cohort.teacher is not None:
        network = world.agreed(partial(load_teacher, cohort.teacher, images.spec, chosen.device, results))
        world.agreed(partial(keeper.measure, cohort, network, task))
        teacher = world.agreed(partial(FrozenTeacher, network, task))
        if cache := cache_of(cohort, chosen.device):
            teacher = cache.before(teacher, keeper.note)
    Cohort(task, teacher, _members(cohort, keeper, task, network, results), keeper).train()


def _members(
    cohort: CohortPlan, keeper: Keeper | Follower, task: Classification, teacher: nn.Module | None, results: Path
) -> Iterator[Member]:
    """The cohort's members where their checkpoints left them; one that cannot be built fails alone.

    Raises:
        OutOfMemory: there is not enough of it for all of them.
    """
    world = task.world
    for run in cohort.runs:
        error: Exception | None = None
        try:
            member = build_member(run, task, teacher, results)
            keeper.resume(member)
        except Exception as raised:
            error = raised
        (code,) = world.worst([failure(error)])
        if code == 0:
            _start_alike(member, world)
            yield member
            continue
        reason = world.told("" if error is None else f"{type(error).__name__}: {error}")
        if code == NO_MEMORY and len(cohort.runs) > 1:
            raise OutOfMemory(reason) from error
        keeper.fail(run.id, error or RuntimeError(reason))


def _start_alike(member: Member, world: World) -> None:
    """Bring a member to where rank 0's is."""
    if world.size > 1:
        state = world.first(member.state() if world.rank == 0 else None)
        if world.rank:
            member.load_state(state)


def build_member(run: Run, task: Classification, teacher: nn.Module | None, results: Path) -> Member:
    """The student and the method of a run at their start.

    Raises:
        ValueError: the method cannot be built for these networks or this data set.
        BadRequest: the weights that it starts from cannot be had.
    """
    device = task.device
    student = place(started_student(run, results), device)
    method = build_method(
        run.row,
        recipe=run.recipe,
        terms=run.terms,
        params=run.params,
        labels=task.images.train_labels,
        student=student,
        teacher=teacher if run.teacher else None,
        data=run.data,
        seed=run.seed,
        device=device,
        stage_epochs=run.stage_epochs,
        schedules=run.schedules,
        world=task.world,
    )
    if run.sync_batch_norm:
        student, method = (_in_step(module) for module in (student, method))
    return Member(run.id, student, method, task)


def _in_step(module: Any) -> Any:
    """A module whose batch norms take the statistics of all processes' images."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]


def started_student(run: Run, results: Path) -> Network:
    """A run's student, whose backbone has the weights that it starts from, and their input normalisation.

    Raises:
        BadRequest: these cannot be had.
    """
    student = build_student(run.student, run.data, run.seed)
    if run.start is not None:
        student.normalise_inputs(run.start.mean, run.start.std)
        backbone = student.backbone if isinstance(student, Branched) else student
        of = run.data if run.start.classes is None else replace(run.data, num_classes=run.start.classes)
        weights, own = load_teacher(run.start, of, torch.device("cpu"), results).state_dict(), backbone.state_dict()
        # The classifier of another number of classes stays as it was drawn.
        backbone.load_state_dict(
            {key: weights[key] if weights[key].shape == own[key].shape else own[key] for key in own}
        )
    return student


def load_teacher(teacher: TeacherRef, data: DataSpec, device: torch.device, results: Path | None = None) -> Network:
    """The frozen teacher with its weights, on ``device``.

    Args:
        teacher: whose weights.
        data: what it was trained on.
        device: where to.
        results: folder of the runs, where one of them makes the teacher.

    Raises:
        BadRequest: the file changed since the plan was made, or does not fit.
    """
    network = build_teacher(teacher.network, data.num_classes, teacher.mean, teacher.std, data.image_size)
    if teacher.made and results is not None:
        network.load_state_dict(_trained(run_folder(results, str(teacher.run)) / STUDENT))
    else:
        weights = read_weights(teacher.path)
        if weights.sha256 != teacher.sha256:
            raise BadRequest(f"{teacher.path} changed while it was in use: run the command again")
        load_into(network, weights, name=teacher.network)
    return place(network, device)


def _trained(path: Path) -> Mapping[str, torch.Tensor]:
    """The weights that a run left."""
    try:
        weights: Mapping[str, torch.Tensor] = checkpoint.load(path)["student"]
    except checkpoint.BadCheckpoint as error:
        raise BadRequest(
            f"the network that others start from or learn from is gone ({error}): 'kdtable store check' tells more"
        ) from error
    return weights


def measure_teacher(store: Store, teacher: TeacherRef, network: nn.Module, task: Classification) -> str | None:
    """Keep the teacher's accuracy on the task's test set, unless it is known already.

    Returns:
        A sentence, when it is too far below the published accuracy: then the file, its input normalisation or the
        data is not what it seems.
    """
    spec = task.images.spec
    key = str(teacher.run) if teacher.made else teacher.sha256
    if (key, spec.key) in {(row["sha256"], row["data"]) for row in store.teacher_accuracies()}:
        return None
    accuracy = task.evaluate(network, alone=True)
    measured = {
        "sha256": key,
        "data": spec.key,
        "network": teacher.network,
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "images": spec.test_count,
        "claimed_top1": teacher.claimed_top1,
    }
    store.record_teacher(measured)
    return shortfall(measured)


def store_row(cell: Cell) -> dict[str, Any]:
    """The columns of a run that are known before it is trained."""
    run = cell.run
    return {
        "id": run.id,
        "protocol_id": run.protocol_id,
        "paper": cell.paper,
        "row": run.row,
        "student": run.student,
        # What a run made of the pair's teacher stands in tables under that teacher.
        "teacher": cell.pair.teacher if run.teacher else None,
        "teacher_sha256": run.teacher.sha256 if run.teacher else None,
        "data": run.data.key,
        "test_images": run.data.test_count,
        "seed": run.seed,
        "precision": run.precision,
        "meaning": json.dumps(run.protocol(), sort_keys=True),
        "epochs": run.recipe.epochs,
        "status": "n/a" if cell.not_applicable else "planned",
        "reason": cell.not_applicable,
    }
