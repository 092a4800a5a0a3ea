"""A run: one student, one method, one seed, with everything resolved that its result depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdtable.data.spec import DataSpec
from kdtable.methods import base_name, get
from kdtable.models.names import NETWORKS
from kdtable.recipe import Recipe

#: Raised when the batch stream, or the training step, gives other numbers for the same inputs.
STREAM_VERSION = 1
STEP_VERSION = 1

#: Names of what networks are computed in; ``kdtable.training.precision`` says what they mean.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class TeacherRef:
    """The teacher of a run: a file of weights, known by its checksum or by the run that trained it.

    ``mean`` and ``std`` are the input normalisation that it was trained with. ``path`` is where it lies now.
    """

    network: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    path: Path
    run: str | None = None
    claimed_top1: float | None = None

    def meaning(self) -> dict[str, Any]:
        """What of it enters a run's identity."""
        origin = {"run": self.run} if self.run else {"sha256": self.sha256}
        return {
            "network": self.network,
            "version": NETWORKS[self.network].version,
            "mean": list(self.mean),
            "std": list(self.std),
            **origin,
        }


@dataclass(frozen=True)
class Run:
    """One trained student.

    Attributes:
        row: the name under which it was asked for (``crd+kd``); not part of the identity.
        student: canonical network name.
        data: the data set.
        recipe: of the main stage.
        terms: loss weights of the main stage, in the order of addition.
        params: hyper-parameters of the method.
        seed: of everything that is random.
        precision: name of the precision.
        teacher: ``None`` where no term uses one.
        stage_epochs: epochs of the stages before the main one, by name.
    """

    row: str
    student: str
    data: DataSpec
    recipe: Recipe
    terms: Mapping[str, float]
    params: Mapping[str, Any]
    seed: int
    precision: str = "fp32"
    teacher: TeacherRef | None = None
    stage_epochs: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return self.recipe.epochs + sum(self.stage_epochs.values())

    @property
    def method(self) -> str:
        """The registered method that the row names."""
        return base_name(self.row)

    def protocol(self) -> dict[str, Any]:
        """The identity without the seed: runs that may be averaged."""
        earlier = {"stages": dict(self.stage_epochs)} if self.stage_epochs else {}
        return {
            "student": {"network": self.student, "version": NETWORKS[self.student].version},
            "data": self.data.meaning(),
            "recipe": self.recipe.meaning(),
            "method": {"name": self.method, "version": get(self.row).version},
            "terms": [[name, weight] for name, weight in self.terms.items()],
            "params": dict(self.params),
            "precision": self.precision,
            "teacher": self.teacher.meaning() if self.teacher else None,
            "versions": {"stream": STREAM_VERSION, "step": STEP_VERSION},
            **earlier,
        }

    @cached_property
    def protocol_id(self) -> str:
        """Hash of :meth:`protocol`."""
        return digest(self.protocol())

    @cached_property
    def id(self) -> str:
        """Identity of the run: the hash of its resolved meaning, seed included."""
        return digest(self.protocol() | {"seed": self.seed})


def digest(meaning: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a mapping's canonical JSON."""
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
