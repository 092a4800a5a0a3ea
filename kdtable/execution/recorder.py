"""Keeps what a cohort reports: checkpoints in the runs' folders, epochs in the store."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from kdtable.atomic import written_whole
from kdtable.runs import Run
from kdtable.store import Store
from kdtable.training import checkpoint
from kdtable.training.member import Diverged, EpochRecord, Member

CHECKPOINT: Final = "checkpoint.pt"
STUDENT: Final = "student.pt"
ERROR: Final = "error.txt"


class Progress(Protocol):
    """What a display is told."""

    def started(self, images: int) -> None:
        """Training begins, with so many student images (images x epochs x runs) ahead."""

    def cohort(self, number: int, total: int, runs: list[Run], teacher: str | None) -> None:
        """A cohort begins."""

    def stepped(self, images: int) -> None:
        """So many student images were trained on."""

    def resumed(self, images: int) -> None:
        """So many student images need not be trained on, since a checkpoint has them behind it."""

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """A run finished an epoch."""

    def failed(self, run: Run, reason: str) -> None:
        """A run failed."""

    def note(self, text: str) -> None:
        """Something that the user should read."""


class Recorder:
    """The sink of one cohort."""

    def __init__(self, store: Store, runs: dict[str, Run], progress: Progress) -> None:
        self._store = store
        self._runs = runs
        self._progress = progress
        self.stepped: Callable[[int], None] = progress.stepped
        self.note: Callable[[str], None] = progress.note

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """Checkpoint first, then the store: an epoch that only the checkpoint knows is repaired on resuming."""
        state = member.state()
        checkpoint.save(self._file(member.run_id, CHECKPOINT), state)
        if member.done:
            self.finish(member)
        else:
            self._store.record(member.run_id, state["history"], done=False)
        self._progress.epoch(self._runs[member.run_id], record)

    def failed(self, member: Member, error: BaseException) -> None:
        """A member of the cohort dropped out."""
        self.fail(member.run_id, error)

    def fail(self, run_id: str, error: BaseException) -> None:
        """Mark a run as failed. What it had reached stays on disk, and its traceback beside that."""
        reason = str(error) if isinstance(error, Diverged) else f"{type(error).__name__}: {error}"
        with written_whole(self._file(run_id, ERROR)) as file:
            file.write("".join(traceback.format_exception(error)).encode())
        self._store.fail(run_id, reason)
        self._progress.failed(self._runs[run_id], reason)

    def finish(self, member: Member) -> None:
        """Keep the trained student, mark the run as done, and drop what was only needed to continue it."""
        state = member.state()
        kept = {key: state[key] for key in ("run", "student", "history")}
        checkpoint.save(self._file(member.run_id, STUDENT), kept)
        self._store.record(member.run_id, state["history"], done=True)
        self._file(member.run_id, CHECKPOINT).unlink(missing_ok=True)

    def resume(self, member: Member) -> None:
        """Bring a fresh member to where its checkpoint was written, if there is one that can be read."""
        state = self._last_state(member.run_id)
        if state is None:
            self._store.restart(member.run_id)
            return
        member.load_state(state)
        run = self._runs[member.run_id]
        self._progress.resumed(len(state["history"]) * run.data.train_count)
        if member.done:
            self.finish(member)
        else:
            self._store.record(member.run_id, state["history"], done=False)

    def _last_state(self, run_id: str) -> dict[str, Any] | None:
        path = self._file(run_id, CHECKPOINT)
        for name in (CHECKPOINT, STUDENT, ERROR):  # what a killed process was writing
            for leftover in path.parent.glob(f".{name}.*"):
                leftover.unlink()
        if not path.exists():
            return None
        try:
            state = checkpoint.load(path)
            if state.get("run") != run_id:
                raise checkpoint.BadCheckpoint(f"{path} belongs to another run")
        except checkpoint.BadCheckpoint as error:
            aside = path.with_suffix(".pt.corrupt")
            path.replace(aside)
            self._progress.note(f"{error}; it was set aside as {aside.name}, and run {run_id} begins again")
            return None
        return state

    def _file(self, run_id: str, name: str) -> Path:
        return self._store.run_folder(run_id) / name
