"""References to the weights that a run learns from or starts from: in a file, from another run, or missing."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtable.models.names import source as network_source
from kdtable.models.names import version as network_version

#: To be raised when the teacher pass gives other results for the same inputs.
TEACHER_PASS_VERSION = 2


@dataclass(frozen=True, slots=True)
class _Network:
    """A trained network: its canonical name, and the input normalisation of its training.

    ``classes`` is its number of classes, if that differs from the number of the run's data set.
    """

    network: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int | None = field(default=None, kw_only=True)

    def _identity(self, **origin: str) -> dict[str, Any]:
        return {
            "network": self.network,
            "version": network_version(self.network),
            **network_source(self.network),
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
        path: the file's current path.
        run: id of the kdtable run that trained it, which then identifies it; else its checksum does.
        claimed_top1: the published accuracy, percent.
        trained_on: key of the data set that a kdtable run trained it on.
        given: whether the user asked a student to start from it, whatever its paper does.
    """

    sha256: str
    path: Path
    run: str | None = None
    claimed_top1: float | None = None
    trained_on: str | None = None
    given: bool = False

    def identity(self) -> dict[str, Any]:
        """The part of a run's identity."""
        found = self._identity(run=self.run) if self.run else self._identity(sha256=self.sha256)
        return found | ({"given": True} if self.given else {})


@dataclass(frozen=True, slots=True)
class RunTeacher(_Network):
    """Weights from a run of the same store, a prerequisite.

    Attributes:
        run: that run's id.
        sha256: checksum of that run's own teacher, by which tables distinguish two files of one teacher.
    """

    run: str
    sha256: str | None = None

    def identity(self) -> dict[str, Any]:
        """The part of a run's identity."""
        return self._identity(run=self.run)


@dataclass(frozen=True, slots=True)
class MissingTeacher(_Network):
    """Missing weights, as a dry run accepts them; its runs' ids change once the weights exist."""

    @property
    def sha256(self) -> None:
        """No checksum."""

    def identity(self) -> dict[str, Any]:
        """The part of a run's identity."""
        return self._identity(sha256="not fetched yet")


#: Weights of one network.
NetworkRef = FileTeacher | RunTeacher | MissingTeacher


@dataclass(frozen=True, slots=True)
class SeveralTeachers:
    """Networks that teach together, by the mean of their probabilities.

    Attributes:
        teachers: at least two, of different networks, in the order of their canonical name.
    """

    teachers: tuple[NetworkRef, ...]

    @property
    def network(self) -> str:
        """Their canonical name: ``resnet56+resnet110``."""
        return "+".join(ref.network for ref in self.teachers)

    @property
    def sha256(self) -> str | None:
        """Checksum of their checksums, by which the store and tables know these files; ``None`` if one is missing."""
        digests = [ref.sha256 for ref in self.teachers]
        return None if None in digests else hashlib.sha256("+".join(map(str, digests)).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """The part of a run's identity."""
        return {"network": self.network, "teachers": [ref.identity() for ref in self.teachers]}


TeacherRef = NetworkRef | SeveralTeachers


def single_refs(ref: TeacherRef | None) -> tuple[NetworkRef, ...]:
    """The references to single networks that a teacher is made of; empty if there is none."""
    if ref is None:
        return ()
    return ref.teachers if isinstance(ref, SeveralTeachers) else (ref,)
