"""What runs on a machine of a cluster: check that it is the right place, then train a part of a request."""

import pickle
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

from kdtable.errors import BadRequest, Trouble, counted, several
from kdtable.execution.assignment import Assignment
from kdtable.execution.progress import Progress
from kdtable.files.remote import check_writable
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord

#: Folder, in that of the results, of what belongs to clusters: logs, and the mark by which workers know the folder.
FOLDER: Final = "cluster"
MARK: Final = "mark"


@dataclass(frozen=True, slots=True)
class Report:
    """How a part ended: ``refused`` would be refused on every machine; ``error`` may pass."""

    refused: str | None = None
    error: str | None = None


def mark(results: Path) -> str:
    """The mark of a results folder, made if it is missing."""
    file = results / FOLDER / MARK
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(uuid4().hex)
    return file.read_text()


def stamped(assignment: Assignment) -> dict[str, str]:
    """What the parts of an assignment are checked against on another machine."""
    from kdtable import __version__
    from kdtable.provenance import source_hash

    stamp = {"kdtable": __version__, "source": source_hash()}
    stamp |= {"results": str(assignment.results), "mark": mark(assignment.results)}
    return stamp | {"checkpoints": assignment.checkpoints or ""}


def packed_part(
    assignment: Assignment, device: str, sharers: int, stamp: dict[str, str] | None = None
) -> tuple[dict[str, str], bytes]:
    """A part for another machine: what it is checked against there, and the rest, which is read only after that.

    Args:
        assignment: with absolute paths.
        device: as on the command line.
        sharers: number of workers that share the device.
        stamp: of the request that it is a part of, where that is known.
    """
    return stamp or stamped(assignment), pickle.dumps((assignment, device, sharers))


def check_place(stamp: dict[str, str]) -> None:
    """Check that this machine has the command's code, and sees where it is to write files.

    Raises:
        BadRequest: it does not.
    """
    from kdtable import __version__
    from kdtable.provenance import source_hash

    host = socket.gethostname()
    here, there = (__version__, source_hash()), (stamp["kdtable"], stamp["source"])
    if here != there:
        raise BadRequest(
            f"{host} has kdtable {here[0]} with sources {here[1]}, and this command has {there[0]} with {there[1]}: "
            "install the same on all machines"
        )
    if stamp["checkpoints"]:
        try:
            check_writable(stamp["checkpoints"])
        except BadRequest as error:
            raise BadRequest(f"{host}: {error}") from error
    elif not _sees(stamp):
        raise BadRequest(
            f"{host} does not see the results folder {stamp['results']}: name one that all machines share (--results), "
            "or where they all can write checkpoints (--checkpoints)"
        )


def _sees(stamp: dict[str, str]) -> bool:
    """Whether this machine sees the command's results folder."""
    try:
        return (Path(stamp["results"]) / FOLDER / MARK).read_text() == stamp["mark"]
    except OSError:
        return False


def no_sqlite(hosts: Sequence[str]) -> str:
    """Why a store in a folder is refused for these machines, and what to do."""
    return (
        f"the cluster has other machines than this ({several(hosts)}), and they cannot share SQLite: name a PostgreSQL "
        "database (--store), or give each job its own --results and join them with 'kdtable store merge'"
    )


def train_part(stamp: dict[str, str], packed: bytes) -> Report:
    """Train what is not done of a part; tell its progress on stdout, which engines keep as a log."""
    try:
        check_place(stamp)
        from kdtable.execution.devices import records_steps
        from kdtable.execution.worker import train_assignment
        from kdtable.numerics.precision import choose_device

        assignment, device, sharers = pickle.loads(packed)
        if assignment.cuda_graphs:
            records_steps("on", assignment.planned_runs[0].run.precision, choose_device(device), 1)
        _share_gpu(device, sharers)
        with ExitStack() as stack:
            if assignment.checkpoints and not _sees(stamp):  # nothing that stays is written there
                folder = stack.enter_context(TemporaryDirectory(prefix="kdtable-"))
                assignment = replace(assignment, results=Path(folder))
            train_assignment(assignment, Printed(), device, sharers)
    except Trouble as error:
        return Report(error=f"on {socket.gethostname()} gave up: {error}")
    except BadRequest as error:
        return Report(refused=str(error))
    except Exception as error:  # any other would travel with a traceback that names the engine's files
        return Report(error=f"on {socket.gethostname()} met {type(error).__name__}: {error}")
    return Report()


def _share_gpu(device: str, sharers: int) -> None:
    """Limit this process to its share of a GPU's memory, so that it meets its own limit and not its neighbours'."""
    if sharers > 1 and device.startswith("cuda"):
        import torch

        torch.cuda.set_per_process_memory_fraction(1 / sharers)


class Printed(Progress):
    """Prints progress as lines of a log."""

    def cohort(self, left: int, runs: list[Run], teacher: str | None) -> None:
        """See :class:`Progress`."""
        self._print(
            f"begins {counted(len(runs), 'run')} with teacher {teacher or 'none'}: {', '.join(run.id for run in runs)}"
        )

    def epoch(self, run: Run, record: EpochRecord) -> None:
        """See :class:`Progress`."""
        self._print(f"run {run.id}: {record.stage} epoch {record.epoch} in {record.seconds:.1f} s")

    def failed(self, run: Run, reason: str) -> None:
        """See :class:`Progress`."""
        self._print(f"run {run.id} failed: {reason}")

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self._print(text)

    def waiting(self, runs: int, where: Sequence[str]) -> None:
        """See :class:`Progress`."""
        self._print(f"waits for {runs} runs that train in {', '.join(where)}")

    def _print(self, text: str) -> None:
        print(f"kdtable: {text}", flush=True)
