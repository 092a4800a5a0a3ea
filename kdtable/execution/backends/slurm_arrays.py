"""Slurm (``--on slurm``): arrays of elements, each of which trains a part of a request. submitit submits them.

An element that is preempted, or that comes to the end of its time, is queued again and goes on from the last epochs.
States of runs come from the store, and those of jobs from ``squeue``: submitit would ask ``sacct``, which many clusters
lack.
"""

import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from types import FrameType
from typing import Any, Final

from kdtable.errors import BadRequest, counted, unknown
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.base import Ended
from kdtable.execution.cluster_settings import ClusterSettings
from kdtable.execution.part import FOLDER, Report, no_sqlite, packed_part, train_part
from kdtable.execution.progress import Progress
from kdtable.execution.timings import Timings, stored_timings
from kdtable.planning.cohorts import CohortPlan, cohorts, layers
from kdtable.planning.run import Run
from kdtable.store.liveness import lease

#: Elements of an array: clusters' limit is often 1001.
CHUNK: Final = 500
#: Maximum number of runs of unknown duration in an element.
MOST: Final = 16
#: How often an element may come to the end of its time. Our own count of progress ends hopeless ones earlier.
TIMEOUTS: Final = 20
#: Seconds before the end of its time, or its preemption, that an element gets a signal.
NOTICE: Final = 240
#: Seconds that elements have to release their runs when they are cancelled.
GRACE: Final = 60.0
#: Seconds that a command of Slurm may take.
PATIENCE: Final = 60.0

#: Why elements may wait without anyone having to do something.
USUAL: Final = ("None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Cleaning", "Prolog")

#: Parameters that say nothing of what an element takes.
UNTOLD: Final = ("job_name", "stderr_to_stdout")


class PartJob:
    """What an element calls, as submitit asks for it."""

    def __call__(self, stamp: dict[str, str], packed: bytes) -> Report:
        """Train a part."""
        _guard_preemption()
        return train_part(stamp, packed)

    def checkpoint(self, stamp: dict[str, str], packed: bytes) -> Any:
        """The same work again, for after a preemption. Called amid training, so it saves nothing: epochs are saved."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, stamp, packed)


def _guard_preemption() -> None:
    """Let no error of submitit's handler of preemptions pass for an error of the run that it interrupts.

    It calls ``scontrol requeue``, which Slurm may kill as a part of the job that it ends.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, partial(_handle, handler))


def _handle(handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None) -> None:
    try:
        handler(number, frame)
    except Exception as error:
        print(f"kdtable: ends, although queueing it again met {type(error).__name__}: {error}", flush=True)
        raise SystemExit(1) from error


class SlurmArrays:
    """Trains under Slurm.

    Args:
        settings: of clusters.
        device: as on the command line, on the nodes.

    Raises:
        BadRequest: submitit or Slurm is not installed, or a parameter is unknown.
    """

    tells_progress = False
    workers = 1_000_000  # Slurm queues

    def __init__(self, settings: ClusterSettings, device: str = "auto") -> None:
        self._settings = settings
        self._device = device
        self._sharers = settings.per_gpu if device != "cpu" else 1
        self._parameters = parameters_of(settings)
        self._timings = Timings({})
        self._unsent: list[Assignment] = []
        self._jobs: dict[str, tuple[Any, Assignment]] = {}  # by Slurm's id
        self._ended: deque[Ended] = deque()
        self._next_look = 0.0
        self._silent = False
        self._told: set[str] = set()
        self._progress = Progress()

    def check(self, assignment: Assignment) -> None:
        """Read the durations of similar runs.

        Raises:
            BadRequest: Slurm does not answer, or several machines would write to one SQLite file.
        """
        where = [f"--partition={self._parameters['partition']}"] if "partition" in self._parameters else []
        told = _slurm("sinfo", "--noheader", "--Node", "--format=%n", *where)
        if told is None:
            raise BadRequest("Slurm does not answer: see what 'sinfo' says")
        hosts = sorted(set(told.split()))
        if assignment.url is None and hosts != [socket.gethostname().partition(".")[0]]:
            raise BadRequest(no_sqlite(hosts))
        runs = (planned.run for planned in assignment.planned_runs)
        self._timings = stored_timings(assignment.results, assignment.url, runs)

    def parts(self, cohorts: Sequence[CohortPlan]) -> list[tuple[Run, ...]]:
        """See :class:`~kdtable.execution.backends.base.Engine`; each takes about the hours that the settings name."""
        wanted = self._settings.hours * 3600
        found: list[tuple[Run, ...]] = []
        element: list[Run] = []
        filled = 0.0
        for cohort in cohorts:
            for run in cohort.runs:
                seconds = self._timings.of(run)
                element.append(run)
                filled += wanted / MOST if seconds is None else seconds
                if filled >= wanted:
                    found, element, filled = [*found, tuple(element)], [], 0.0
        return [*found, tuple(element)] if element else found

    def plan_words(self, cohorts: Sequence[CohortPlan], timings: Timings) -> str:
        """What would be submitted, in one sentence."""
        self._timings = timings
        parts = self.parts(cohorts)
        sizes = max(map(len, parts), default=0)
        shown = {key: value for key, value in self._parameters.items() if key not in UNTOLD}
        wants = ", ".join(f"{key} {value}" for key, value in sorted(shown.items()))
        of = f"{counted(len(parts), 'element')} of up to {counted(sizes, 'run')}"
        return f"Slurm would get {of} in arrays of at most {CHUNK}, each with {wants}"

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`; the next :meth:`wait` sends all as one array."""
        self._unsent.append(assignment)
        self._progress = progress

    def wait(self, seconds: float) -> Ended | None:
        """See :class:`~kdtable.execution.backends.base.Engine`.

        Raises:
            BadRequest: what every element would refuse, or Slurm refuses the array.
        """
        if not self._ended:
            self._send()
            if (left := self._next_look - time.monotonic()) > 0:
                time.sleep(min(seconds, left))
            else:
                self._look()
        return self._ended.popleft() if self._ended else None

    def leave(self, assignment: Assignment, runs: Iterable[Run]) -> list[str]:
        """Submit all of a request at once: what needs other runs waits for their array to end.

        Args:
            assignment: the request.
            runs: those of it to train.

        Returns:
            Slurm's ids of the arrays.
        """
        planned = {planned.run.id: planned for planned in assignment.planned_runs}
        needed = frozenset(need for each in planned.values() for need in each.run.needs)
        sent: list[str] = []
        before: list[str] = []
        for layer in layers(runs):
            elements = [tuple(planned[run.id] for run in part) for part in self.parts(cohorts(layer))]
            parts = [replace(assignment, planned_runs=element, needed=needed) for element in elements]
            before = sorted({job.job_id.partition("_")[0] for job in self._send_arrays(parts, before)})
            sent += before
        return sent

    def cancel(self) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`. Elements that train are interrupted as by Ctrl-C."""
        ids = list(self._jobs)
        self._unsent.clear()
        self._jobs.clear()
        if not ids:
            return
        _slurm("scancel", "--state=PENDING", *ids)
        whole = [] if self._parameters.get("use_srun", True) else ["--full"]
        _slurm("scancel", "--signal=INT", *whole, *ids)
        end = time.monotonic() + GRACE
        while time.monotonic() < end and _queued() & set(ids):
            time.sleep(1)
        _slurm("scancel", *ids)

    def _send(self) -> None:
        if not self._unsent or (self._silent and time.monotonic() < self._next_look):
            return
        try:
            jobs = self._send_arrays(self._unsent)
        except BadRequest as error:
            if not self._jobs:
                raise
            self._tell_silence(str(error))  # perhaps the controller is away for a while
            return
        self._jobs |= {job.job_id: (job, part) for job, part in zip(jobs, self._unsent, strict=True)}
        self._unsent = []

    def _send_arrays(self, parts: Sequence[Assignment], after: Sequence[str] = ()) -> list[Any]:
        """Submit parts as arrays of at most :data:`CHUNK` elements; their submitit jobs."""
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError

        jobs: list[Any] = []
        for start in range(0, len(parts), CHUNK):
            some = [self._element(part) for part in parts[start : start + CHUNK]]
            executor = SlurmExecutor(parts[0].results / FOLDER / "slurm", max_num_timeout=TIMEOUTS)
            depends = {"dependency": f"afterany:{':'.join(after)}"} if after else {}
            executor.update_parameters(**self._parameters, **depends)
            try:
                with executor.batch():
                    jobs += [executor.submit(PartJob(), *element) for element in some]
            except (FailedJobError, subprocess.CalledProcessError) as error:
                last = str(error).strip().splitlines()[-1]
                raise BadRequest(f"Slurm took no array ({last}): see [cluster.slurm] of kdtable.toml") from error
        return jobs

    def _element(self, part: Assignment) -> tuple[dict[str, str], bytes]:
        # After a preemption the element's former process may seem alive for a lease.
        part = replace(part, patience=2 * lease(), at_most=self._settings.runs_per_task)
        return packed_part(part, self._device, self._sharers)

    def _look(self) -> None:
        """Ask Slurm which elements have left its queue."""
        self._next_look = time.monotonic() + self._settings.pause
        told = _squeue()
        if told is None:
            self._tell_silence("squeue does not answer")
            return
        self._silent = False
        for job_id in [job_id for job_id in self._jobs if job_id not in told]:
            job, part = self._jobs.pop(job_id)
            self._ended.append(Ended(_reason(job), part))
        for why in {told[job_id] for job_id in self._jobs} - self._told - {*USUAL}:
            self._told.add(why)
            self._progress.note(f"Slurm lets elements wait for '{why}': see 'squeue --me', and [cluster.slurm]")

    def _tell_silence(self, what: str) -> None:
        if not self._silent:
            self._progress.note(f"{what}: waiting for it")
        self._silent = True


def parameters_of(settings: ClusterSettings) -> dict[str, Any]:
    """The parameters of every array, in submitit's names.

    Raises:
        BadRequest: submitit or Slurm is not installed, or ``[cluster.slurm]`` has an unknown parameter or value.
    """
    if find_spec("submitit") is None:
        raise BadRequest("--on slurm needs submitit: pip install 'kdtable[slurm]'")
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise BadRequest("--on slurm needs Slurm's commands, and there is no 'sbatch' or 'srun' here")
    from submitit import SlurmExecutor

    known = SlurmExecutor._valid_parameters()
    for key in settings.slurm:
        if key not in known:
            raise BadRequest(f"[cluster.slurm] of kdtable.toml, or --cluster: {unknown('parameter', key, known)}")
    ours: dict[str, Any] = {
        "job_name": "kdtable",
        "time": math.ceil(max(60.0, 2 * 60 * settings.hours)),  # minutes
        "cpus_per_task": settings.cpus,
        "signal_delay_s": NOTICE,
        "stderr_to_stdout": True,
    }
    if settings.memory_gb:
        ours["mem"] = f"{math.ceil(settings.memory_gb * 1000)}M"
    return ours | dict(settings.slurm)


def _reason(job: Any) -> str | None:
    """Why an element left its work; raises `BadRequest` for what others would meet too."""
    log = job.paths.stdout
    try:
        how, content = pickle.loads(job.paths.result_pickle.read_bytes())
    except OSError:
        why = f"its log is {log}" if log.exists() else f"it left no log: do the nodes see {log.parent}?"
        return f"of Slurm's job {job.job_id} ended early ({why})"
    if isinstance(content, Report):
        if content.refused:
            raise BadRequest(content.refused)
        return content.error
    return f"of Slurm's job {job.job_id} ended with {how} ({str(content).strip().splitlines()[-1]})"


def _squeue() -> dict[str, str] | None:
    """This user's jobs in Slurm's queue, array elements each: id to why it waits; ``None`` if Slurm does not answer."""
    told = _slurm("squeue", "--noheader", "--array", "--format=%i %r", f"--user={os.getuid()}")
    return None if told is None else dict(line.split(maxsplit=1) for line in told.splitlines() if " " in line)


def _queued() -> set[str]:
    return {*(_squeue() or {})}


def _slurm(program: str, *arguments: str) -> str | None:
    """What a command of Slurm prints; ``None`` if it fails."""
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
