"""Fine-tune a teacher's heads: the preparation of DIH (arXiv 2103.00497).

    loss = sum over the heads of CE(head(tap), y)

The network is a trained ``NETWORK+heads``. Its backbone is frozen and in eval mode.

``kept`` = "last" keeps the last epoch's heads. ``kept`` = "test-batch" is the released code: it keeps each head from
the epoch at which its loss on the last batch of the shuffled test images was lowest (the latest such epoch). With
batches of 64 that batch has 16 of CIFAR's 10,000 images.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.methods.objective import Objective, Params, as_kind
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe


def branch_loss(branches: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sum of the cross-entropies of several classifiers.

    Args:
        branches: (B, C) logits of each classifier.
        labels: (B,) int64.
    """
    losses = [F.cross_entropy(logits, labels) for logits in branches]
    return sum(losses[1:], start=losses[0])


@dataclass(frozen=True)
class HeadsParams(Params):
    """Hyper-parameters.

    Attributes:
        kept: "last": the last epoch's heads; "test-batch": each head from its epoch of lowest loss on a test batch.
    """

    kept: Literal["last", "test-batch"] = "last"


class Heads(Method):
    """Cross-entropy of the student's heads, alone; no teacher."""

    hyper = HeadsParams
    combines_with_kd = False
    term = "heads"
    weight_range = None
    student_features = frozenset({"branches"})
    student_terms = frozenset({"heads"})

    lowest: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if not setting.student_shapes.branches:
            raise ValueError("there are no heads to train: name the network with them, NETWORK+heads")
        self.kept: nn.Module | None = None
        if setting.params(HeadsParams).kept == "test-batch" and setting.student is not None:
            self.kept = copy.deepcopy(setting.student.get_submodule("branches")).requires_grad_(False)
            self.register_buffer("lowest", torch.full((len(setting.student_shapes.branches),), math.inf))

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """Refuse to choose among the heads of several epochs and to average them."""
        if recipe.ema and as_kind(objective.params, HeadsParams).kept == "test-batch":
            return "it keeps heads of several epochs (kept=test-batch), and ema averages them"
        return super().unfit(recipe, objective)

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The heads."""
        return list(student.get_submodule("branches").parameters())

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Put all in eval mode and freeze the backbone."""
        student.eval()
        student.get_submodule("backbone").requires_grad_(False)

    @torch.no_grad()
    def end_epoch(
        self, stage: Stage, epoch: int, student: nn.Module, last_test_batch: Callable[[], tuple[Outputs, Batch]]
    ) -> None:
        """Keep each head whose loss on the test batch is lowest so far; after the last epoch the student gets them."""
        if self.kept is None:
            return
        heads = student.get_submodule("branches")
        outputs, batch = last_test_batch()
        losses = torch.stack([F.cross_entropy(logits, batch.labels) for logits, _ in outputs.branches])
        better = losses <= self.lowest
        self.lowest.copy_(torch.where(better, losses, self.lowest))
        for kept, head, chosen in zip(self.kept.children(), heads.children(), better.tolist(), strict=True):
            if chosen:
                kept.load_state_dict(head.state_dict())
        if epoch == stage.recipe.epochs:
            heads.load_state_dict(self.kept.state_dict())

    def loss(self, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """See the base class; the own term reads no teacher."""
        if name == self.term:
            return branch_loss([logits for logits, _ in student.branches], batch.labels)
        return super().loss(name, student, teacher, batch)
