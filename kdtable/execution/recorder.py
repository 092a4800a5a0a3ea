"""Store what a cohort reports: checkpoints in the runs' folders, epochs in the store."""

import os
import shutil
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kdtable import tasks
from kdtable.checkpoints import checkpoint, student
from kdtable.distributed import ran_out_of_memory
from kdtable.errors import BadRequest
from kdtable.execution.keeper import Keeper
from kdtable.execution.progress import Progress
from kdtable.files.atomic import (
    replace_durably,
    set_aside,
    sync,
    written_whole,
)
from kdtable.models.ensemble import Ensemble, single_networks
from kdtable.models.network import Network
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, RunTeacher, TeacherRef, single_refs
from kdtable.recipes.metrics import VALIDATED
from kdtable.recipes.record import EpochRecord
from kdtable.store import ClaimLost, Store, Worker
from kdtable.store.files import CHECKPOINT, EPOCHS, ERROR, STUDENT, clear
from kdtable.store.records import TeacherRecord, choose
from kdtable.tasks.base import Task
from kdtable.teachers.claimed import shortfall
from kdtable.training.cohort import Withdrawn
from kdtable.training.member import Member
from kdtable.training.step import Diverged


class Unreachable(Exception):
    """A prerequisite has failed."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"it needs {what}, which failed: {reason}")


class Died(Exception):
    """Workers died with a run, so many in a row."""

    def __init__(self, workers: int, reason: str) -> None:
        super().__init__(
            f"{workers} workers in a row died with it before they finished an epoch; the last one {reason}"
        )


class Recorder(Keeper):
    """The sink of one cohort, whose runs ``worker`` has claimed.

    A file is first written under a temporary name. It is moved into place within the transaction that confirms the
    claim, so that a process that was suspended while others took over its runs replaces nothing.

    Args:
        store: the store that plans the runs.
        worker: holds the claims.
        runs: the cohort's runs by id.
        progress: receives events.
        keep: "last", "all" or "none": which weights of a done run stay on disk.
        needed: ids of prerequisites, whose students are kept for the runs that need them.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        runs: dict[str, Run],
        progress: Progress,
        keep: str,
        needed: Collection[str] = (),
    ) -> None:
        self._needed = needed
        self._store = store
        self._worker = worker
        self._runs = runs
        self._progress = progress
        self._keep = keep

    def note(self, text: str) -> None:
        """Show a message to the user."""
        self._progress.note(text)

    def left(self, cohort: CohortPlan) -> tuple[Run, ...]:
        """Runs that are still claimed: not done, not failed, not taken over."""
        held = set(self._worker.claims())
        return tuple(run for run in cohort.runs if run.id in held)

    def measure(self, cohort: CohortPlan, network: Network | Ensemble, task: Task) -> None:
        """See :func:`measure_teacher`, for each of several teachers too; warns the user if an accuracy is too low."""
        if cohort.teacher is None:
            return
        measured = list(zip(single_refs(cohort.teacher), single_networks(network), strict=True))
        for ref, one in [*measured, (cohort.teacher, network)] if len(measured) > 1 else measured:
            if warning := measure_teacher(self._store, ref, one, task):
                self.note(warning)

    def stepped(self, members: Sequence[Member], images: int) -> None:
        """Report a step of these members."""
        self._progress.stepped([member.run_id for member in members], images)

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """Write the checkpoint, then the store; resuming repairs an epoch that only the checkpoint has.

        Raises:
            Withdrawn: the claim was lost, or the checkpoint cannot be written.
            BadRequest: the database cannot be used.
            MemoryError, RuntimeError: memory ran out; a smaller cohort may fit.
        """
        try:
            self._save(member, record)
            if member.done:
                self.finish(member)
        except BadRequest:
            raise
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            self.failed(member.run_id, error)
            raise Withdrawn from error
        self._progress.epoch(self._runs[member.run_id], record)

    def failed(self, run_id: str, error: BaseException) -> None:
        """Mark a run as failed. Its checkpoint stays on disk, with the traceback beside it.

        A run that another process has taken over is not marked.
        """
        reason = reason_of(error)
        try:
            with self._worker.holding(run_id) as held:
                if not isinstance(error, OSError):  # a traceback adds nothing to a disk or permission error
                    self._keep_trace(run_id, error)
                held.fail(reason)
        except ClaimLost as lost:
            self.note(str(lost))
        else:
            self._progress.failed(self._runs[run_id], reason)

    def finish(self, member: Member) -> None:
        """Store the trained student, mark the run as done, and remove its checkpoint."""
        run_id, keep = member.run_id, self._kept(member.run_id)
        with ExitStack() as stack:
            staged = None
            if keep != "none":
                staged = stack.enter_context(self._staged(run_id, STUDENT, self._student_of(member)))
            held = stack.enter_context(self._worker.holding(run_id))
            if staged:
                replace_durably(staged, self._file(run_id, STUDENT))
            held.finish(member.history, keep, *parameters_of(member))
        checkpoint.discard(self._file(run_id, CHECKPOINT))

    def resume(self, member: Member) -> None:
        """Load a fresh member's newest valid checkpoint, if there is one.

        Raises:
            ClaimLost: the run was taken over.
        """
        run_id = member.run_id
        with self._worker.holding(run_id):
            clear(self._store.run_folder(run_id), done=False)
        state = self._continue(member)
        if state is None:
            with self._worker.holding(run_id) as held:
                held.restart()
            self._progress.reached(run_id, 0)
            return
        self._progress.reached(run_id, len(state["history"]) * self._runs[run_id].data.train_count)
        if member.done:
            self.finish(member)
        else:
            with self._worker.holding(run_id) as held:
                held.record(member.history, *parameters_of(member))

    def _kept(self, run_id: str) -> str:
        """Which weights of a done run stay."""
        return "last" if self._keep == "none" and run_id in self._needed else self._keep

    def _student_of(self, member: Member) -> Callable[[Path], None]:
        """Writes the trained student of a member."""
        origin = _origin(self._runs[member.run_id], member.history)
        return partial(student.save, tensors=member.trained_student(), origin=origin)

    def _save(self, member: Member, record: EpochRecord) -> None:
        state = member.state()
        run_id = member.run_id
        write = partial(checkpoint.save, state=state)
        with self._staged(run_id, CHECKPOINT, write) as staged, self._worker.holding(run_id) as held:
            if self._keep == "all":
                _hard_link(staged, self._epoch_file(run_id, record.stage, record.epoch))
            checkpoint.step_back(self._file(run_id, CHECKPOINT))
            os.replace(staged, self._file(run_id, CHECKPOINT))  # its content is synced already
            held.record(member.history, *parameters_of(member))
        # Outside the transaction, which blocks all other writers. If a power cut loses the rename, resuming removes
        # the epoch from the store.
        sync(self._store.run_folder(run_id))

    def _continue(self, member: Member) -> dict[str, Any] | None:
        """Load a member's newest valid checkpoint and return it; ``None`` if there is none."""
        run_id = member.run_id
        older = (
            self._epoch_file(run_id, stage.name, epoch)
            for stage in reversed(member.stages)
            for epoch in range(stage.recipe.epochs, 0, -1)
        )

        def move(file: Path) -> Path:
            with self._worker.holding(run_id):
                return set_aside(file)

        path = self._file(run_id, CHECKPOINT)
        found = checkpoint.recover(path, run_id, member.state(), move, member.load_state, older)
        after = "begins again" if found.state is None else "goes on from the checkpoint before"
        for sentence in found.bad:
            self.note(f"{sentence}, and run {run_id} {after}")
        return found.state

    def _keep_trace(self, run_id: str, error: BaseException) -> None:
        try:
            with written_whole(self._file(run_id, ERROR)) as file:
                file.write("".join(traceback.format_exception(error)).encode(errors="replace"))
        except OSError as unwritten:  # as on a full disk; the store has the reason
            self.note(f"the traceback of run {run_id} cannot be kept: {unwritten}")

    @contextmanager
    def _staged(self, run_id: str, name: str, write: Callable[[Path], None]) -> Iterator[Path]:
        """Write a temporary file; the caller moves it into place within the block, else it is removed."""
        path = self._file(run_id, f"{name}.{self._worker.id}")
        try:
            try:
                write(path)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._file(run_id, name))) from error
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _epoch_file(self, run_id: str, stage: str, epoch: int) -> Path:
        """Path of an epoch's own checkpoint (``--keep all``)."""
        return self._file(run_id, EPOCHS) / f"{stage}-{epoch:04d}.pt"

    def _file(self, run_id: str, name: str) -> Path:
        return self._store.run_folder(run_id) / name


def parameters_of(member: Member) -> tuple[int, int]:
    """Number of the measured network's parameters, extra classifiers included, and of the method's own."""
    student, method = (sum(p.numel() for p in part.parameters()) for part in (member.student, member.method))
    return student + member.method.kept_parameters(), method


def _origin(run: Run, history: Sequence[EpochRecord]) -> student.Origin:
    """The metadata of a run's trained student; it normalises its input like the weights that it started from."""
    constants = run.start or run.data
    chosen = choose(history, tasks.get(run.task).metrics[0])
    return student.Origin(
        network=run.student,
        num_classes=run.data.num_classes,
        image_size=run.data.image_size,
        mean=tuple(constants.mean),
        std=tuple(constants.std),
        data=run.data.key,
        run=run.id,
        metrics=chosen[VALIDATED][1] if VALIDATED in chosen else history[-1].metrics,
        history=[asdict(record) for record in history],
    )


def reason_of(error: BaseException) -> str:
    """Why a run failed, in words for the user; for a bug, the exception's type and message."""
    if isinstance(error, Diverged | checkpoint.BadCheckpoint | Unreachable | Died):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror}): see to that, and go on with the same command"
    if ran_out_of_memory(error):
        first = str(error).partition("\n")[0]
        return f"it does not fit into memory ({first}): free some, and go on with the same command"
    return f"{type(error).__name__}: {error}"


def _hard_link(file: Path, target: Path) -> None:
    """Link or copy a file to ``target``. Linking is safe, because checkpoints are replaced and never changed."""
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, target)


def measure_teacher(store: Store, teacher: TeacherRef, network: nn.Module, task: Task) -> str | None:
    """Measure and store the teacher's accuracy on the task's test set, unless the store has it or it has no classifier.

    Returns:
        A warning if it is too far below the published accuracy: then the file, its input normalisation or the data is
        wrong.
    """
    if isinstance(network, Network) and not network.classifies:
        return None
    spec = task.images.spec
    key = teacher.run if isinstance(teacher, RunTeacher) else teacher.sha256
    if key is None or (key, spec.key) in {(known.sha256, known.data) for known in store.teacher_accuracies()}:
        return None
    measured, main = task.evaluate(network), task.metrics[0]
    claimed = teacher.claimed_top1 if isinstance(teacher, FileTeacher) else None
    metrics = {metric.stored: measured[metric.stored] for metric in task.metrics if metric.stored in measured}
    store.record_teacher(TeacherRecord(key, spec.key, teacher.network, metrics, spec.test_count, claimed))
    return shortfall(teacher.network, spec.key, main.shown(metrics[main.stored]), claimed, spec.test_count)
