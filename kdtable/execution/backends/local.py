"""One worker, in this process."""

from collections import deque
from collections.abc import Mapping

from kdtable.data.sets import Images
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.base import Ended
from kdtable.execution.devices import DeviceSlot
from kdtable.execution.progress import Progress
from kdtable.execution.ranks import ProcessGroup, joined
from kdtable.execution.worker import train_assignment


class Local:
    """Trains in this process, inside :meth:`wait`.

    Args:
        slot: the device slot.
        sets: the images of all data sets by key, where they are loaded already.
        process_group: ranks that torchrun has started; this process is rank 0.
    """

    workers = 1
    tells_progress = True

    def __init__(
        self, slot: DeviceSlot, sets: Mapping[str, Images] | None = None, process_group: ProcessGroup | None = None
    ) -> None:
        self._slot = slot
        self._sets = sets
        self._process_group = process_group
        self._queue: deque[tuple[Assignment, Progress]] = deque()

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        """See :class:`~kdtable.execution.backends.base.Backend`."""
        self._queue.append((assignment, progress))

    def wait(self, seconds: float) -> Ended:
        """Train the next assignment to its end, however long that takes."""
        assignment, progress = self._queue.popleft()
        with joined(self._process_group, assignment) as ranks:
            train_assignment(assignment, progress, self._slot.device, self._slot.sharers, ranks, self._sets)
        return Ended()

    def cancel(self) -> None:
        """Do nothing: training happens inside :meth:`wait`, so it has ended already."""
