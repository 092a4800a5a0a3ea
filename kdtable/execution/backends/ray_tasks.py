"""Ray (``--on ray``): a task for each part of a request.

Ray schedules and tells when a task has ended. Everything else goes through the store, so Ray's own retries are off: a
lost task's runs are submitted again, from their last epochs.
"""

import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Final

from kdtable.errors import BadRequest, Trouble, counted
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.base import Ended
from kdtable.execution.cluster_settings import ClusterSettings
from kdtable.execution.part import Report, check_place, no_sqlite, packed_part, stamped, train_part
from kdtable.execution.progress import Progress
from kdtable.execution.timings import Timings
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run

#: Seconds that an address has to answer. Ray itself would wait for minutes.
PATIENCE: Final = 10.0
#: Seconds that a cluster's head may be away. Ray itself would end this process after 60.
AWAY: Final = 40.0
#: Seconds between two looks at how large the cluster is.
COUNT: Final = 5.0
#: Seconds that tasks have to release their runs when they are cancelled.
GRACE: Final = 60.0
#: Bytes of Ray's object store, where Ray is started here: nothing of ours is in it.
OBJECTS: Final = 80 * 2**20
#: Of each slot: tasks submitted at a time, so that one is always ready; and tasks that a small request is divided into,
#: so that slots do not wait long for the last one.
AHEAD: Final = 2
DIVIDED: Final = 4
#: Maximum number of runs in a task by default.
MOST: Final = 16


class RayTasks:
    """Trains on a Ray cluster, which it joins or, on this machine alone, starts.

    Args:
        settings: of clusters.
        device: as on the command line; ``auto`` is a GPU where the cluster has any.

    Raises:
        BadRequest: Ray is not installed, or there is no cluster at the address.
    """

    tells_progress = False
    #: What a task calls.
    work = staticmethod(train_part)

    def __init__(self, settings: ClusterSettings, device: str = "auto") -> None:
        self._ray = _connected(settings.ray.address)
        self._settings = settings
        on_gpu = device != "cpu" and (device != "auto" or self._ray.cluster_resources().get("GPU", 0) > 0)
        self._device = "cuda:0" if on_gpu else "cpu"
        self._sharers = settings.per_gpu if on_gpu else 1
        self._task = self._remote(self.work)
        self._stamp: dict[str, str] | None = None
        self._tasks: dict[Any, Assignment] = {}  # by the reference to its report
        self._head = str(self._ray.get_runtime_context().gcs_address)
        self._answered = time.monotonic()
        self._slots, self._counted = 1, -math.inf
        self._ended: deque[Ended] = deque()

    @property
    def slots(self) -> int:
        """Number of tasks that the cluster can run at a time; at least 1, since nodes may be yet to come."""
        if time.monotonic() - self._counted > COUNT:
            found, wants = self._ray.cluster_resources(), self.resources()
            names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
            fit = (int(found.get(names[name], 0) / amount + 1e-6) for name, amount in wants.items() if amount)
            self._slots = max(1, min(fit))
            self._counted = time.monotonic()
        return self._slots

    @property
    def workers(self) -> int:
        """See :class:`~kdtable.execution.backends.base.Engine`."""
        return AHEAD * self.slots

    def resources(self) -> dict[str, float]:
        """What a task asks for, in Ray's names."""
        wants: dict[str, float] = {"num_cpus": self._settings.cpus}
        if self._device != "cpu":
            # Rounded down, as Ray counts: rounded up, the last of the tasks would not fit.
            wants["num_gpus"] = math.floor(1e4 / self._sharers) / 1e4
        if self._settings.memory_gb:
            wants["memory"] = int(self._settings.memory_gb * 1e9)
        return wants

    def parts(self, cohorts: Sequence[CohortPlan]) -> list[tuple[Run, ...]]:
        """See :class:`~kdtable.execution.backends.base.Engine`."""
        return divided(cohorts, self.slots, self._settings.runs_per_task)

    def check(self, assignment: Assignment) -> None:
        """Check every node of today: its sources, and whether it sees the results folder.

        Raises:
            BadRequest: a node is another, or several machines would write to one SQLite file.
        """
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        hosts = sorted({node["NodeManagerHostname"] for node in nodes})
        if assignment.url is None and hosts != [socket.gethostname()]:
            raise BadRequest(no_sqlite(hosts))
        stamp = self._stamp = stamped(assignment)
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        probe = self._ray.remote(num_cpus=0, max_retries=0)(check_place)
        asked = [probe.options(scheduling_strategy=strategy(n["NodeID"], soft=False)).remote(stamp) for n in nodes]
        for one in asked:
            self._answer(one)

    def plan_words(self, cohorts: Sequence[CohortPlan], timings: Timings) -> str:
        """What would be submitted, in one sentence."""
        parts = self.parts(cohorts)
        sizes = max(map(len, parts), default=0)
        wants = ", ".join(f"{name} {amount:g}" for name, amount in self.resources().items())
        of = f"{counted(len(parts), 'task')} of up to {counted(sizes, 'run')}"
        return f"Ray would get {of}, each with {wants}; {self.slots} run at a time"

    def leave(self, assignment: Assignment, runs: Iterable[Run]) -> list[str]:
        """See :class:`~kdtable.execution.backends.base.Engine`; Ray ends the tasks of a command that ends."""
        raise BadRequest("--detach is for Slurm: with Ray use 'ray job submit --no-wait -- kdtable run ... --on ray'")

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`."""
        part = packed_part(assignment, self._device, self._sharers, self._stamp)
        self._tasks[self._task.remote(*part)] = assignment

    def wait(self, seconds: float) -> Ended | None:
        """See :class:`~kdtable.execution.backends.base.Engine`.

        Raises:
            BadRequest: what every worker would refuse.
            Trouble: the cluster's head is gone.
        """
        self._look_at_head()
        if not self._tasks and not self._ended:
            time.sleep(seconds)
        if not self._ended and self._tasks:
            tasks = list(self._tasks)
            if self._ray.wait(tasks, num_returns=1, timeout=seconds)[0]:
                for task in self._ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]:
                    self._ended.append(Ended(self._reason(task), self._tasks.pop(task)))
        return self._ended.popleft() if self._ended else None

    def _look_at_head(self) -> None:
        now = time.monotonic()
        if now - self._answered < AWAY / 8:
            return
        if answers(self._head, AWAY / 8):
            self._answered = now
        elif now - self._answered > AWAY:
            self._tasks.clear()  # nobody is left to cancel them
            raise Trouble(
                f"the head of the Ray cluster at {self._head} is gone: finished epochs are kept; start a cluster, and "
                "call again"
            )

    def cancel(self) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`; leaves the cluster."""
        if self._ray.is_initialized():
            for task in self._tasks:
                self._ray.cancel(task)  # a KeyboardInterrupt there: claims are released
            left = list(self._tasks)
            if left:
                _, left = self._ray.wait(left, num_returns=len(left), timeout=GRACE)
            for task in left:
                self._ray.cancel(task, force=True)
            self._tasks.clear()
            self._ray.shutdown()

    def _remote(self, function: Any) -> Any:
        """A function as Ray's task. On a GPU each task has a fresh process, since a used one keeps memory there."""
        options = self.resources() | {"max_retries": 0, "name": "kdtable"}
        if "num_gpus" in options:
            options |= {"max_calls": 1, "scheduling_strategy": "SPREAD" if self._sharers == 1 else "DEFAULT"}
        if self._settings.ray.accelerator_type:
            options["accelerator_type"] = self._settings.ray.accelerator_type
        if self._settings.ray.labels:
            options["label_selector"] = dict(self._settings.ray.labels)
        return self._ray.remote(**options)(function)

    def _reason(self, task: Any) -> str | None:
        """Why a task's worker gave up or died; raises `BadRequest` for what others would meet too."""
        report = self._answer(task)
        if isinstance(report, Report):
            if report.refused:
                raise BadRequest(report.refused)
            return report.error
        return str(report)

    def _answer(self, task: Any) -> Any:
        """What a task returned, or the reason of its death."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, BadRequest):
                raise BadRequest(str(cause)) from None
            if isinstance(cause, ImportError):
                raise BadRequest(f"a node of the Ray cluster lacks what this one has ({cause})") from None
            return f"met {type(cause).__name__}"
        except errors.RayError as error:
            return f"was lost ({type(error).__name__})"


def divided(cohorts: Sequence[CohortPlan], slots: int, most: int | None = None) -> list[tuple[Run, ...]]:
    """Divide cohorts for so many slots. Parts get smaller as less is left, so that slots end at about the same time.

    Args:
        cohorts: what is ready.
        slots: number of tasks that run at a time.
        most: number of runs in a part, where the user has named one.
    """
    runs = sum(len(cohort.runs) for cohort in cohorts)
    size = most or min(MOST, math.ceil(runs / (DIVIDED * slots)))
    return [cohort.runs[at : at + size] for cohort in cohorts for at in range(0, len(cohort.runs), size)]


def _connected(address: str) -> Any:
    """The package ``ray``, connected to a cluster."""
    if find_spec("ray") is None:
        raise BadRequest("--on ray needs Ray: pip install 'kdtable[ray]'")
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    if address.startswith("ray://"):
        raise BadRequest("a ray:// address is Ray Client's, which drops connections: use 'ray job submit' instead")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # else workers may be started with another Python
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray.util.scheduling_strategies

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address not in ("auto", "local"):
        if not answers(address):
            raise BadRequest(
                f"no Ray cluster answers at {address}: start one ('ray start --head'), or correct the address"
            )
        ray.init(address, **quiet)
        return ray
    if address == "auto":
        try:
            ray.init("auto", **quiet)
        except ConnectionError:  # this machine belongs to no cluster
            address = "local"
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init("local", object_store_memory=OBJECTS, include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises it bare, when its processes are not up in 30 seconds
            raise Trouble(
                f"Ray does not start here ({str(error).partition('. ')[0]}): call again, or --on local"
            ) from error
    return ray


def answers(address: str, patience: float = PATIENCE) -> bool:
    """Whether a gRPC server, such as the head of a Ray cluster, answers at HOST:PORT within ``patience`` seconds."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise BadRequest(f"ray.address is HOST:PORT, auto or local, not '{address}'")
    settings_frame = b"\0\0\0\4\0\0\0\0\0"  # empty; HTTP/2 begins with one from either side
    try:
        with socket.create_connection((host, int(port)), timeout=patience) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return True  # it answers nobody who does not know its certificates
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings_frame)
            return connection.recv(9)[3:4] == settings_frame[3:4]
    except OSError:
        return False
