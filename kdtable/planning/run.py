"""A run: one student, one method, one seed, with everything resolved that its result depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from kdtable.data.spec import DataSpec
from kdtable.methods import base_name, get
from kdtable.methods.objective import Objective
from kdtable.models.names import version as network_version
from kdtable.numerics.names import split_precision
from kdtable.planning.teacher_refs import RunTeacher, TeacherRef
from kdtable.recipes.recipe import Recipe

if TYPE_CHECKING:
    from kdtable.methods.base import Method

#: Raised when the batch stream, or the training step, gives other numbers for the same inputs.
STREAM_VERSION = 1
STEP_VERSION = 1


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a batch is taken apart.

    Attributes:
        devices: processes that train a run together, each on a share of every batch.
        accumulate: parts of a process's share whose gradients are summed.
        sync_batch_norm: whether the processes' batch statistics are those of the whole batch.
    """

    devices: int = 1
    accumulate: int = 1
    sync_batch_norm: bool = False

    @property
    def parts(self) -> int:
        """Into how many a batch is taken apart."""
        return self.devices * self.accumulate

    def identity(self) -> dict[str, Any]:
        """What enters a run's identity; nothing where a batch stays whole."""
        if self.parts == 1:
            return {}
        shares: dict[str, Any] = {"devices": self.devices, "accumulate": self.accumulate}
        return {"shares": shares | ({"sync_batch_norm": True} if self.sync_batch_norm else {})}


#: Every process has the whole batch, and takes it at once.
WHOLE: Final = Sharding()


@dataclass(frozen=True)
class Run:
    """One trained student.

    Attributes:
        row: the name under which it was asked for (``crd+kd``); not part of the identity.
        student: canonical network name.
        data: the data set.
        recipe: of the main stage.
        objective: loss terms, hyper-parameters, schedules, and epochs of the stages before the main one.
        seed: of everything that is random.
        precision: name of the precision, with what the teacher's cache holds where the run uses one.
        teacher: ``None`` where no term uses one.
        start: the weights that the student's backbone starts from; ``None`` where they are drawn.
        sharding: how its batches are taken apart.
        test_loss: whether the loss on the test images is measured after every epoch; ``None`` where its row does not
            say, which is no.
        task: name of the task; of the stages that name none.
    """

    row: str
    student: str
    data: DataSpec
    recipe: Recipe
    objective: Objective
    seed: int
    precision: str = "fp32"
    teacher: TeacherRef | None = None
    start: TeacherRef | None = None
    sharding: Sharding = WHOLE
    test_loss: bool | None = None
    task: str = "classification"

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the runs that must be done before this one can begin."""
        return tuple(ref.run for ref in (self.teacher, self.start) if isinstance(ref, RunTeacher))

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return self.recipe.epochs + sum(self.objective.stage_epochs.values())

    @cached_property
    def method(self) -> "type[Method]":
        """The class of the method that the row names."""
        return get(self.row)

    @property
    def teacher_cache(self) -> str:
        """What the cache of the teacher's outputs holds; "off" where the run uses none."""
        return split_precision(self.precision)[1]

    def of_seed(self, seed: int) -> "Run":
        """The same run with another seed; what all seeds share is not computed again."""
        other = replace(self, seed=seed)
        shared = ("method", "_protocol", "protocol_text", "protocol_id", "_around_seed")
        other.__dict__.update({name: getattr(self, name) for name in shared})
        return other

    def protocol(self) -> Mapping[str, Any]:
        """The identity without the seed: runs that may be averaged."""
        return self._protocol

    @cached_property
    def _protocol(self) -> dict[str, Any]:
        objective = self.objective.identity()
        if self.test_loss is not None:
            # A measurement, which once was called and kept as a hyper-parameter.
            objective["params"] = {**objective["params"], "test_objective": self.test_loss}
        return {
            "student": {"network": self.student, "version": network_version(self.student)},
            "data": self.data.identity(),
            "recipe": self.recipe.identity(),
            "method": {"name": base_name(self.row), "version": self.method.version},
            "precision": self.precision,
            "teacher": self.teacher.identity() if self.teacher else None,
            "versions": {"stream": STREAM_VERSION, "step": STEP_VERSION},
            **objective,
            **self.sharding.identity(),
            **({"start": self.start.identity()} if self.start else {}),
            **({"task": self.task} if self.task != "classification" else {}),
        }

    @cached_property
    def protocol_text(self) -> str:
        """:meth:`protocol` as canonical JSON."""
        return _canonical(self._protocol)

    @cached_property
    def protocol_id(self) -> str:
        """Hash of :meth:`protocol`."""
        return _hash(self.protocol_text)

    @cached_property
    def _around_seed(self) -> tuple[str, str]:
        """The canonical JSON of the whole identity before and behind the seed: grids have tens of thousands of runs."""
        before, _, behind = _canonical(self._protocol | {"seed": "@"}).partition('"seed":"@"')
        return f'{before}"seed":', behind

    @cached_property
    def id(self) -> str:
        """Hash of the identity, seed included."""
        before, behind = self._around_seed
        return _hash(f"{before}{self.seed}{behind}")


def digest(identity: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a mapping's canonical JSON."""
    return _hash(_canonical(identity))


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
