"""Store what a cohort reports, with checkpoints and students at URLs (``--checkpoints``)."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from kdtable.checkpoints import checkpoint
from kdtable.errors import BadRequest, counted
from kdtable.execution.known import opened
from kdtable.execution.progress import Progress
from kdtable.execution.recorder import Recorder, parameters_of
from kdtable.files import remote
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord
from kdtable.store import ClaimLost, Store, Worker, shared
from kdtable.store.files import CHECKPOINT, PREVIOUS, STUDENT
from kdtable.store.shared import SharedFile, files_of, sweep
from kdtable.training.member import Member

#: ``--keep all`` lets go of none.
ALL: Final = 10**6


def recorder_of(
    store: Store,
    worker: Worker,
    runs: dict[str, Run],
    progress: Progress,
    keep: str,
    needed: Collection[str],
    checkpoints: str | None,
) -> Recorder:
    """The recorder of a cohort, whose files go to the folder at the URL ``checkpoints`` if there is one."""
    if checkpoints is None:
        return Recorder(store, worker, runs, progress, keep, needed)
    return SharedRecorder(store, worker, runs, progress, keep, needed, checkpoints)


def check_place(url: str | None, results: Path, store_url: str | None, left: Iterable[Run]) -> None:
    """Check that a request's files can be written to a URL, and that its unfinished runs do not go on elsewhere.

    Args:
        url: of the folder; ``None`` for the results folder.
        results: folder of the store.
        store_url: URL of its database.
        left: the runs to train.

    Raises:
        BadRequest: it cannot be written to, or some have checkpoints at URLs and there is none.
    """
    ids = [run.id for run in left]
    if url is not None:
        if ids:
            remote.check_writable(url)
        return
    with opened(results, store_url) as store:
        found = {} if store is None else files_of(store, ids, shared.CHECKPOINT)
    if found:
        there = next(iter(found.values()))[0].url.rsplit("/", 2)[0]
        raise BadRequest(
            f"{counted(len(found), 'unfinished run')} of these have checkpoints in {there}: add --checkpoints {there}"
        )


def sweep_left(store: Store, ids: Iterable[str], progress: Progress) -> None:
    """Remove what killed processes left at URLs."""
    try:
        sweep(store, ids)
    except OSError as error:
        progress.note(f"{error.filename} cannot be removed ({error.strerror}): the next command tries again")


class SharedRecorder(Recorder):
    """A `Recorder` whose files are at URLs.

    Such places cannot rename. So a file is written under a new name, and becomes the run's in the transaction that
    stores the epoch: a process that is killed before that leaves the former checkpoint in force. What belongs to no
    result is removed after the next epoch, at the run's end, or by the next command.

    Args:
        store: the store, prepared for such files.
        worker: holds the claims.
        runs: the cohort's runs by id.
        progress: receives events.
        keep: "last", "all" or "none": which weights of a done run stay.
        needed: ids of prerequisites.
        url: of the folder.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        runs: dict[str, Run],
        progress: Progress,
        keep: str,
        needed: Collection[str],
        url: str,
    ) -> None:
        super().__init__(store, worker, runs, progress, keep, needed)
        self._url = url

    def finish(self, member: Member) -> None:
        """Store the trained student, mark the run as done, and remove its checkpoints."""
        run_id, keep = member.run_id, self._kept(member.run_id)
        with ExitStack() as stack:
            sent = None
            if keep != "none":
                write = self._student_of(member)
                sent = stack.enter_context(self._sent(member, shared.STUDENT, STUDENT, write))
            held = stack.enter_context(self._worker.holding(run_id))
            if sent:
                held.commit(sent)
            held.withdraw(ALL if keep == "all" else 0)
            held.finish(member.history, keep, *parameters_of(member))
        checkpoint.discard(self._file(run_id, CHECKPOINT))  # of an earlier command, without --checkpoints
        self._file(run_id, STUDENT).unlink(missing_ok=True)
        self._sweep(run_id)

    def _save(self, member: Member, record: EpochRecord) -> None:
        state, run_id = member.state(), member.run_id
        write = partial(checkpoint.save, state=state)
        with self._sent(member, shared.CHECKPOINT, CHECKPOINT, write) as sent, self._worker.holding(run_id) as held:
            held.commit(sent)
            held.withdraw(ALL if self._keep == "all" else shared.CHECKPOINTS)
            held.record(member.history, *parameters_of(member))
        checkpoint.discard(self._file(run_id, CHECKPOINT))  # of an earlier command, without --checkpoints
        self._sweep(run_id)

    def _continue(self, member: Member) -> dict[str, Any] | None:
        fetched = self._fetch(member.run_id)
        state = super()._continue(member)
        for path in fetched:
            path.unlink(missing_ok=True)
        return state

    def _fetch(self, run_id: str) -> list[Path]:
        """Bring the newest good checkpoints into the run's folder, where a local command has its own.

        Raises:
            OSError: nobody can say whether they are good.
        """
        there = files_of(self._store, [run_id], shared.CHECKPOINT).get(run_id, [])
        if not there:
            return []
        with self._worker.holding(run_id):
            checkpoint.discard(self._file(run_id, CHECKPOINT))  # older than those
        fetched: list[Path] = []
        for file in there[: None if self._keep == "all" else shared.CHECKPOINTS]:
            name = PREVIOUS if fetched else CHECKPOINT
            try:
                self._bring(file, run_id, name)
            except (FileNotFoundError, remote.Mismatch):
                self.note(
                    f"{file.url} is gone or damaged: run {run_id} goes on from the checkpoint before, or begins again"
                )
            else:
                fetched.append(self._file(run_id, name))
            if len(fetched) == shared.CHECKPOINTS:
                break
        return fetched

    def _bring(self, file: SharedFile, run_id: str, name: str) -> None:
        path = self._file(run_id, f"{name}.{self._worker.id}")
        try:
            remote.download(file.url, path, file.sha256)
            with self._worker.holding(run_id):
                os.replace(path, self._file(run_id, name))
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _sent(self, member: Member, kind: str, name: str, write: Callable[[Path], None]) -> Iterator[str]:
        """Write a file to a URL of its own; the caller makes it the run's within the block, else it is removed."""
        run_id, epochs = member.run_id, len(member.history)
        attempt = self._worker.attempt(run_id)
        url = f"{self._url}/{run_id}/{kind}-{attempt}-{epochs}-{uuid4().hex[:12]}{Path(name).suffix}"
        with self._staged(run_id, name, write) as staged:
            file = SharedFile(url, run_id, kind, attempt, epochs, remote.digest(staged), staged.stat().st_size)
            with self._worker.holding(run_id) as held:
                held.announce(file)
            try:
                remote.upload(staged, url)
                yield url
            except ClaimLost:
                # Who has the run now may have swept before this file was there. After any other error its row is there,
                # and perhaps it became the run's: that of a connection lost in the transaction tells nothing.
                with suppress(OSError):
                    remote.remove(url)
                raise

    def _sweep(self, run_id: str) -> None:
        try:
            sweep(self._store, [run_id], self._worker.attempt(run_id))
        except OSError as error:
            self.note(f"{error.filename} cannot be removed ({error.strerror}): the next epoch tries again")
