"""SEED: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021, arXiv 2101.04731.

Student and teacher see one view of an image: s = head(trunk(view)) and t, both of length 1. With a queue of the
teacher's last K vectors

    p = softmax([t . t, t . queue] / T_t),  L = mean of - sum p log softmax([s . t, s . queue] / T)

after which the teacher's vectors enter the queue. t is the teacher's embedding: of ``moco_resnet50`` the vector of its
contrastive head, as of the paper's teachers; of others, which have none, the classifier's input.

Readings: ``teacher_temperature`` is 1e-4 by default in the released code, which is almost one-hot on the image itself,
and 0.01 in the paper's text.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.distributed import shard_sizes
from kdtable.methods.base import Setting
from kdtable.methods.objective import Objective, as_kind
from kdtable.methods.parts.contrast import seed_loss
from kdtable.methods.parts.pretraining import Pretraining, ProbeParams, unit
from kdtable.methods.parts.queues import Queue, check_queue, queue_bytes
from kdtable.methods.ranges import Range
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe


@dataclass(frozen=True)
class SEEDParams(ProbeParams):
    """Hyper-parameters.

    Attributes:
        queue: K.
        temperature: T, of the student.
        teacher_temperature: T_t.
    """

    queue: PositiveInt = 65536
    temperature: Annotated[PositiveFloat, Range(0.05, 0.5)] = 0.2
    teacher_temperature: Annotated[PositiveFloat, Range(1e-4, 0.1)] = 1e-4


class SEED(Pretraining):
    """Similarities to a queue of the teacher's vectors."""

    hyper = SEEDParams
    term = "seed"
    teacher_features = frozenset({"embedding"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(SEEDParams)
        if setting.teacher_shapes is None or setting.teacher_shapes.embedding is None:
            raise ValueError("it compares embeddings with a teacher's, and there is none")
        width = setting.teacher_shapes.embedding.shape[1]
        self.head = self.mlp(width)
        self.queue = Queue(width, self.params.queue)
        self._given: list[Tensor] = []  # of the micro-batches so far

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """Refuse a queue that vectors cannot fill evenly.

        Raises:
            BadRequest: it is no multiple of the batch.
        """
        check_queue(as_kind(objective.params, SEEDParams).queue, recipe.batch_size)
        return super().unfit(recipe, objective)

    @classmethod
    def buffer_bytes(cls, objective: Objective, weights: int, teacher_width: int) -> int:
        """See the base class: the queue."""
        return queue_bytes(teacher_width, as_kind(objective.params, SEEDParams).queue)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The loss; after a batch's last micro-batch all ranks' vectors of the teacher enter the queue."""
        assert student.embedding is not None
        assert teacher.embedding is not None
        s, t = unit(self.head(student.embedding)), unit(teacher.embedding)
        loss = seed_loss(s, t, self.queue.vectors.clone(), self.params.temperature, self.params.teacher_temperature)
        self._given.append(t)
        ranks = self.setting.ranks
        sizes = shard_sizes(batch.whole, ranks.size)
        if sum(map(len, self._given)) == sizes[ranks.rank]:
            self.queue.put(ranks.all_gather(torch.cat(self._given), sizes))
            self._given = []
        return loss
