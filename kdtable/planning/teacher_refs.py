"""What a run of a plan learns from or starts from: weights in a file, weights that another run makes, or none yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtable.models.names import version as network_version

#: Raised when the teacher's pass gives other numbers for the same inputs.
TEACHER_PASS_VERSION = 2


@dataclass(frozen=True, slots=True)
class _Network:
    """A trained network: its canonical name, and the input normalisation that it was trained with."""

    network: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def _identity(self, **origin: str) -> dict[str, Any]:
        return {
            "network": self.network,
            "version": network_version(self.network),
            "mean": list(self.mean),
            "std": list(self.std),
            "pass": TEACHER_PASS_VERSION,
            **origin,
        }


@dataclass(frozen=True, slots=True)
class FileTeacher(_Network):
    """Weights in a file.

    Attributes:
        sha256: the file's checksum.
        path: where it lies now.
        run: the run of ours that trained it, by which it is then known; else it is known by its checksum.
        claimed_top1: the published accuracy, percent.
        classes: their number where it was trained for others than a run's data set has.
        trained_on: key of the data set that a run of ours trained it on.
    """

    sha256: str
    path: Path
    run: str | None = None
    claimed_top1: float | None = None
    classes: int | None = None
    trained_on: str | None = None

    def identity(self) -> dict[str, Any]:
        """What of it enters a run's identity."""
        return self._identity(run=self.run) if self.run else self._identity(sha256=self.sha256)


@dataclass(frozen=True, slots=True)
class RunTeacher(_Network):
    """Weights that a run of the same store makes, which must be done first.

    Attributes:
        run: that run's id.
        sha256: checksum of that run's own teacher, by which tables tell two files of one teacher apart.
        classes: as of a file.
    """

    run: str
    sha256: str | None = None
    classes: int | None = None

    def identity(self) -> dict[str, Any]:
        """What of it enters a run's identity."""
        return self._identity(run=self.run)


@dataclass(frozen=True, slots=True)
class MissingTeacher(_Network):
    """Weights that are not there. A dry run can do without them; the ids of its runs change once they are there."""

    classes: int | None = None

    @property
    def sha256(self) -> None:
        """No checksum."""

    def identity(self) -> dict[str, Any]:
        """What of it enters a run's identity."""
        return self._identity(sha256="not fetched yet")


TeacherRef = FileTeacher | RunTeacher | MissingTeacher
