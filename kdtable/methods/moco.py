"""MoCo v2: Chen, Fan, Girshick and He, "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297.

The student sees one view of an image, q = head(trunk(view)) of length 1. A key encoder, which follows the student
slowly, sees the other, k. With a queue of the last K keys

    L = mean of - log softmax([q . k, q . queue] / T)[0]

A step: key <- m key + (1 - m) student, for parameters only, since the key encoder's batch statistics come from its own
passes; then both passes, in train mode; the loss, with the queue as it was; and the keys enter the queue. No teacher.

``bn_splits`` = n normalises n equal parts of a batch by statistics of their own, and the keys' images in another order,
as on n GPUs: else batch statistics tell which key belongs to which query. Several ranks shuffle keys among them; parts
then belong to ranks, so that n ranks with n splits compute what one process does. The released code runs on 8 GPUs.

Micro-batches of a batch share one move of the key encoder, and their keys one pass.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Le
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.data.views import Views
from kdtable.distributed import shard_sizes
from kdtable.errors import BadRequest
from kdtable.methods.base import Setting
from kdtable.methods.objective import Objective, Params, as_kind
from kdtable.methods.parts.contrast import infonce
from kdtable.methods.parts.pretraining import Pretraining, ProbeParams, unit
from kdtable.methods.parts.queues import Queue, check_queue, queue_bytes
from kdtable.methods.parts.random_draws import generator_state, restore_generator
from kdtable.methods.ranges import Range
from kdtable.models.outputs import Outputs
from kdtable.models.split_norms import split_batch_norms
from kdtable.recipes.recipe import Recipe


@dataclass(frozen=True)
class MoCoParams(ProbeParams):
    """Hyper-parameters; the defaults are MoCo v2's on ImageNet.

    Attributes:
        queue: K, a multiple of the batch.
        dim: width of the vectors.
        key_momentum: m in [0, 1].
        temperature: T.
        bn_splits: parts of a batch with batch statistics of their own.
    """

    queue: PositiveInt = 65536
    dim: PositiveInt = 128
    key_momentum: Annotated[float, Ge(0), Le(1)] = 0.999
    temperature: Annotated[PositiveFloat, Range(0.05, 0.5)] = 0.2
    bn_splits: PositiveInt = 8


class MoCo(Pretraining):
    """Momentum contrast of two views."""

    hyper: ClassVar[type[Params]] = MoCoParams
    term = "infonce"
    student_terms = frozenset({"infonce"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(MoCoParams)
        assert setting.student is not None
        split_batch_norms(setting.student, max(1, self.params.bn_splits // setting.ranks.size))
        self.head = self.mlp(self.params.dim)
        self.key_trunk = copy.deepcopy(setting.student).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.queue = Queue(self.params.dim, self.params.queue)
        self._keys: Tensor | None = None  # of the batch or shard whose micro-batches are under way
        self._used = 0

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """Refuse a queue that keys cannot fill evenly, and a batch that cannot be split.

        Raises:
            BadRequest: a setting and the batch size contradict each other.
        """
        params, batch = as_kind(objective.params, MoCoParams), recipe.batch_size
        check_queue(params.queue, batch)
        if batch % params.bn_splits or batch < 2 * params.bn_splits:
            raise BadRequest(
                f"a batch of {batch} images has no {params.bn_splits} equal parts of two images or more for batch "
                f"statistics: change --batch-size or --set bn_splits"
            )
        return super().unfit(recipe, objective)

    @classmethod
    def buffer_bytes(cls, objective: Objective, weights: int, teacher_width: int) -> int:
        """See the base class: the key encoder, with the copy that a checkpoint is written from, and the queue."""
        params = as_kind(objective.params, MoCoParams)
        return 2 * weights + queue_bytes(params.dim, params.queue)

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Batch], Tensor]]:
        """See the base class; ``infonce`` reads no teacher, so that :meth:`loss` gives it."""
        return {**super().own_terms(), "infonce": self.distillation}

    def loss(self, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """See the base class."""
        if name != "infonce":
            return super().loss(name, student, teacher, batch)
        assert student.embedding is not None
        if self._keys is None:
            self._begin(cast(Views, batch))
        return self.contrast(unit(self.head(student.embedding)), batch)

    def begin_step(self, teacher: Outputs | None, batch: Batch) -> None:
        """Move the key encoder and compute the keys of this rank's shard, for all its micro-batches."""
        super().begin_step(teacher, batch)
        if isinstance(batch, Views):  # the probe has one view
            self._begin(batch)

    def _begin(self, batch: Views) -> None:
        self.follow()
        self._keys, self._used = self.keys(batch), 0

    def contrast(self, q: Tensor, batch: Batch) -> Tensor:
        """InfoNCE of the next queries (B, D) of the batch; after the last ones all ranks' keys enter the queue."""
        assert self._keys is not None
        k = self._keys[self._used : self._used + len(q)]
        self._used += len(q)
        loss = infonce(q, k, self.queue.vectors.clone(), self.params.temperature)
        if self._used == len(self._keys):
            ranks = self.setting.ranks
            self.queue.put(ranks.all_gather(self._keys, shard_sizes(batch.whole, ranks.size)))
            self._keys = None
        return loss

    @torch.no_grad()
    def follow(self) -> None:
        """Move the key encoder's parameters towards the student's."""
        assert self.setting.student is not None
        m = self.params.key_momentum
        slow: list[Tensor] = [*self.key_trunk.parameters(), *self.key_head.parameters()]
        fast = [x.detach() for module in (self.setting.student, self.head) for x in module.parameters()]
        torch._foreach_mul_(slow, m)
        torch._foreach_add_(slow, fast, alpha=1 - m)

    @torch.no_grad()
    def keys(self, batch: Views) -> Tensor:
        """(B, D) of length 1, of the other view of this rank's images."""
        images, ranks = batch.other, self.setting.ranks
        if self.params.bn_splits == 1 and ranks.size == 1:
            return self._encoded(images, batch)
        sizes, own = shard_sizes(batch.whole, ranks.size), ranks.shard(batch.whole)
        generator = self.setting.generator
        order = torch.randperm(batch.whole, generator=generator, device=generator.device).to(images.device)
        mixed = ranks.all_gather(images, sizes)[order][own]
        encoded = ranks.all_gather(self._encoded(mixed, batch), sizes)
        return encoded[order.argsort()][own]

    def _encoded(self, images: Tensor, batch: Views) -> Tensor:
        outputs = self.setting.forward(self.key_trunk, replace(batch, images=images), frozenset({"embedding"}))
        assert outputs.embedding is not None
        found: Tensor = unit(self.key_head(outputs.embedding))
        return found

    def get_extra_state(self) -> dict[str, object]:
        """The generator's state."""
        return generator_state(self.setting.generator)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue the generator."""
        restore_generator(self.setting.generator, state)
