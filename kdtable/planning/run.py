"""A run: one student, one method, one seed, with everything resolved that its result depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kdtable.data.spec import DataSpec
from kdtable.methods import base_name, get
from kdtable.models.names import version as network_version
from kdtable.numerics.names import split_precision
from kdtable.planning.teacher_refs import RunTeacher, TeacherRef
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule

#: Raised when the batch stream, or the training step, gives other numbers for the same inputs.
STREAM_VERSION = 1
STEP_VERSION = 1


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
        precision: name of the precision, with what the teacher's cache holds where the run uses one.
        teacher: ``None`` where no term uses one.
        stage_epochs: epochs of the stages before the main one, by name.
        start: the weights that the student's backbone starts from; ``None`` where they are drawn.
        schedules: how the weights of terms of the main stage change over its epochs, by name.
        devices: processes that train it together, each on a share of every batch.
        accumulate: parts of a process's share whose gradients are summed.
        sync_batch_norm: whether the processes' batch statistics are those of the whole batch.
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
    start: TeacherRef | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    devices: int = 1
    accumulate: int = 1
    sync_batch_norm: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the runs that must be done before this one can begin."""
        return tuple(ref.run for ref in (self.teacher, self.start) if isinstance(ref, RunTeacher))

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return self.recipe.epochs + sum(self.stage_epochs.values())

    @property
    def method(self) -> str:
        """The registered method that the row names."""
        return base_name(self.row)

    @property
    def teacher_cache(self) -> str:
        """What the cache of the teacher's outputs holds; "off" where the run uses none."""
        return split_precision(self.precision)[1]

    def protocol(self) -> Mapping[str, Any]:
        """The identity without the seed: runs that may be averaged."""
        return self._protocol

    @cached_property
    def _protocol(self) -> dict[str, Any]:
        later: dict[str, Any] = {"stages": dict(self.stage_epochs)} if self.stage_epochs else {}
        later |= {"start": self.start.identity()} if self.start else {}
        if changing := {name: found for name, s in self.schedules.items() if (found := s.identity())}:
            later["schedules"] = changing
        if (self.devices, self.accumulate) != (1, 1):
            shares = {"devices": self.devices, "accumulate": self.accumulate}
            later["shares"] = shares | ({"sync_batch_norm": True} if self.sync_batch_norm else {})
        return {
            "student": {"network": self.student, "version": network_version(self.student)},
            "data": self.data.identity(),
            "recipe": self.recipe.identity(),
            "method": {"name": self.method, "version": get(self.row).version},
            "terms": [[name, weight] for name, weight in self.terms.items()],
            "params": dict(self.params),
            "precision": self.precision,
            "teacher": self.teacher.identity() if self.teacher else None,
            "versions": {"stream": STREAM_VERSION, "step": STEP_VERSION},
            **later,
        }

    @cached_property
    def protocol_id(self) -> str:
        """Hash of :meth:`protocol`."""
        return digest(self.protocol())

    @cached_property
    def id(self) -> str:
        """Identity of the run: the hash of its resolved meaning, seed included."""
        return digest(self._protocol | {"seed": self.seed})


def digest(meaning: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a mapping's canonical JSON."""
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
