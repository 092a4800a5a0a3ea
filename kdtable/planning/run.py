"""A run: one student, one method, one seed, with all that its result depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from kdtable import tasks
from kdtable.data.spec import DataSpec
from kdtable.methods import get
from kdtable.methods import identity as method_identity
from kdtable.methods.objective import Objective, stage_epochs
from kdtable.models.names import source as network_source
from kdtable.models.names import version as network_version
from kdtable.numerics.names import split_precision
from kdtable.planning.teacher_refs import NetworkRef, RunTeacher, TeacherRef, single_refs
from kdtable.recipes.recipe import Recipe

if TYPE_CHECKING:
    from kdtable.methods.base import Method

#: To be raised when the batch stream, or the training step, gives other results for the same inputs.
STREAM_VERSION = 1
STEP_VERSION = 1


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a batch is divided.

    Attributes:
        devices: number of ranks that train a run, each on a shard of every batch.
        accumulate: number of micro-batches of a rank's shard, whose gradients are summed.
        sync_batch_norm: whether batch norms use the statistics of the whole batch instead of a shard's.
    """

    devices: int = 1
    accumulate: int = 1
    sync_batch_norm: bool = False

    @property
    def parts(self) -> int:
        """Number of micro-batches in a whole batch."""
        return self.devices * self.accumulate

    def identity(self) -> dict[str, Any]:
        """The part of a run's identity; empty if batches are not divided."""
        if self.parts == 1:
            return {}
        sharding: dict[str, Any] = {"devices": self.devices, "accumulate": self.accumulate}
        return {"shares": sharding | ({"sync_batch_norm": True} if self.sync_batch_norm else {})}


#: One rank takes the whole batch at once.
WHOLE: Final = Sharding()


@dataclass(frozen=True)
class Run:
    """One trained student.

    Attributes:
        row: name of its row (``crd+kd``); not part of the identity.
        student: canonical network name.
        data: the data set.
        recipe: recipe of the main stage.
        objective: loss terms, hyper-parameters, schedules, and epochs of the stages before the main one.
        seed: seed of all random numbers.
        precision: name of the precision, with the stored type of the teacher cache where the run uses one.
        teacher: one network or several; ``None`` if no term uses one.
        start: the weights that the student's backbone starts from; ``None`` for random initialisation.
        sharding: how its batches are divided.
        test_loss: whether to measure the loss on the test images after every epoch; ``None`` (no) if its row does not
            say.
        task: name of the task of the stages that name none.
    """

    row: str
    student: str
    data: DataSpec
    recipe: Recipe
    objective: Objective
    seed: int
    precision: str = "fp32"
    teacher: TeacherRef | None = None
    start: NetworkRef | None = None
    sharding: Sharding = WHOLE
    test_loss: bool | None = None
    task: str = tasks.DEFAULT

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the prerequisites: runs that must be done before this one can begin."""
        return tuple(ref.run for ref in (*single_refs(self.teacher), self.start) if isinstance(ref, RunTeacher))

    @property
    def stage_epochs(self) -> dict[str, int]:
        """Epochs of all stages in order. The recipe's are those of ``main``, or of ``pretrain`` before a probe."""
        return stage_epochs(self.objective.stage_epochs, self.recipe.epochs)

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return sum(self.stage_epochs.values())

    @cached_property
    def method(self) -> "type[Method]":
        """The class of the method that the row names."""
        return get(self.row, self.task)

    @property
    def teacher_cache(self) -> str:
        """The stored type of the run's teacher cache; "off" if it uses none."""
        return split_precision(self.precision)[1]

    def of_seed(self, seed: int) -> "Run":
        """The same run with another seed; what all seeds share is not computed again."""
        other = replace(self, seed=seed)
        shared = ("method", "protocol", "protocol_text", "protocol_id", "_around_seed")
        other.__dict__.update({name: getattr(self, name) for name in shared})
        return other

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The identity without the seed; runs with the same protocol may be averaged."""
        objective = self.objective.identity()
        if self.test_loss is not None:
            # Stored as a hyper-parameter by the first version; moving it would change run ids.
            objective["params"] = {**objective["params"], "test_objective": self.test_loss}
        return {
            "student": {
                "network": self.student,
                "version": network_version(self.student),
                **network_source(self.student),
            },
            "data": self.data.identity(),
            "recipe": self.recipe.identity(),
            "method": method_identity(self.row, self.task),
            "precision": self.precision,
            "teacher": self.teacher.identity() if self.teacher else None,
            "versions": {"stream": STREAM_VERSION, "step": STEP_VERSION},
            **objective,
            **self.sharding.identity(),
            **({"start": self.start.identity()} if self.start else {}),
            **({"task": self.task} if self.task != tasks.DEFAULT else {}),
        }

    @cached_property
    def protocol_text(self) -> str:
        """:meth:`protocol` as canonical JSON."""
        return _canonical(self.protocol)

    @cached_property
    def protocol_id(self) -> str:
        """Hash of :meth:`protocol`."""
        return _hash(self.protocol_text)

    @cached_property
    def _around_seed(self) -> tuple[str, str]:
        """The canonical JSON of the whole identity before and behind the seed: grids have tens of thousands of runs."""
        before, _, behind = _canonical(self.protocol | {"seed": "@"}).partition('"seed":"@"')
        return f'{before}"seed":', behind

    @cached_property
    def id(self) -> str:
        """The run's id: the hash of its protocol and seed."""
        before, behind = self._around_seed
        return _hash(f"{before}{self.seed}{behind}")


def digest(identity: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a mapping's canonical JSON."""
    return _hash(_canonical(identity))


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
