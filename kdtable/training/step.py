"""One training step: forward pass, weighted loss terms, backward pass, optimiser."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdtable.data.stream import slices
from kdtable.methods.base import Method, Stage
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Task, TaskBatch, TaskOutputs
from kdtable.training.average import Average
from kdtable.training.dot import DOT


class Diverged(Exception):
    """The loss of a run became NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Trained:
    """An epoch's training loss and terms, as means over the examples of all ranks, and the task's metrics."""

    loss: float
    terms: dict[str, float]
    metrics: dict[str, float]


class Learner:
    """Optimises a student in one stage.

    Args:
        student: the network, on its device.
        method: the method with its adaptors, on the same device.
        task: the stage's task.
        stage: the loss terms and the recipe.
    """

    def __init__(self, student: nn.Module, method: Method, task: Task, stage: Stage) -> None:
        self.student, self.method, self.task, self.stage = student, method, task, stage
        self.optimizer = _optimizer(method.trained(stage, student), stage, task.device)
        self.average = Average(student, stage.recipe) if stage.recipe.ema else None
        self._base_terms = task.base_terms_of(stage.recipe)
        self.scaler = task.precision.scaler()
        self.epoch = 0
        self._whole = task.ranks.micro_batches == 1
        self._done, self._per_epoch = 0, steps_per_epoch(task, stage.recipe)
        self._own_teacher = bool(stage.teacher_features & task.per_student_features)

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate of an epoch (from 1) and reset its sums."""
        self.epoch, self._done = epoch, 0
        if self.average is not None:
            self.average.begin_epoch(epoch)
        self._set_rate(self.stage.recipe.lr_at(epoch))
        self.method.set_modes(self.stage, self.student)
        # Loss, one sum per term, number of examples: kept on the device, read once an epoch.
        self.sums = torch.zeros(2 + len(self.stage.terms), dtype=self.task.sum_dtype, device=self.task.device)
        self._meter = self.task.meter("train")

    def _set_rate(self, rate: float) -> None:
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def finished(self) -> bool:
        """Whether the recipe's steps are done, before the epoch's batches are."""
        total = self.stage.recipe.iterations
        return total > 0 and self._step >= total

    @property
    def _step(self) -> int:
        """Number of the next step, from 0, over all epochs of the stage."""
        return (self.epoch - 1) * self._per_epoch + self._done

    @property
    def measured(self) -> nn.Module:
        """The network that is measured and kept: the student, or its moving average where the recipe has one."""
        return self.student if self.average is None else self.average.network

    def moving(self) -> dict[str, list[Tensor]]:
        """The tensors that a step changes in place, by kind; trained parameters come first."""
        modules, optimizer = (self.student, self.method), self.optimizer
        averaged = [] if self.average is None else self.average.tensors()
        states = [*optimizer.state.values(), vars(self._meter)]
        held = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return {
            "parameters": [p for group in optimizer.param_groups for p in group["params"]],
            "buffers": [buffer for module in modules for buffer in module.buffers()],
            "momentum and sums": [self.sums, *held, *averaged],
        }

    def step(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Make one optimiser step on a batch or a rank's shard of it; ``teacher`` holds the teacher's outputs.

        Does nothing if the recipe's steps are done.
        """
        if self.finished:
            return
        if self.stage.recipe.stepwise:
            self._set_rate(self.stage.recipe.lr_of_step(self._step, self.epoch))
        self.optimizer.zero_grad(set_to_none=True)
        if self._whole:
            self._accumulate(batch, teacher)
        else:
            self.method.begin_step(teacher, batch)
            for micro_batch, outputs in self.task.divide(batch, teacher, self.task.ranks.accumulate):
                self._accumulate(micro_batch, outputs)
            self.task.ranks.all_reduce_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self.update()

    def _accumulate(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Add the gradients and the statistics of a batch or micro-batch."""
        outputs = self.forward(batch)
        losses = self.losses(outputs, teacher, batch)
        total = weighted_sum(losses, self.stage, self.epoch)
        if isinstance(self.optimizer, DOT):
            self.optimizer.backward(*self._apart(losses))
        else:
            self.backward(total)
        self._add_to_sums(batch, outputs, total, losses)

    def forward(self, batch: TaskBatch) -> TaskOutputs:
        """The student's outputs, with the features that the stage reads."""
        return self.task.forward(self.student, batch, self.stage.student_features)

    def teacher_for(self, outputs: TaskOutputs, teacher: TaskOutputs | None, batch: TaskBatch) -> TaskOutputs | None:
        """The teacher's outputs, with those that depend on this student where the stage reads them."""
        if not self._own_teacher:
            return teacher
        with torch.no_grad():
            return self.task.teacher_for(self.method.setting.teacher, teacher, outputs, batch)

    def losses(self, outputs: TaskOutputs, teacher: TaskOutputs | None, batch: TaskBatch) -> list[Tensor]:
        """The stage's unweighted terms; for a micro-batch or shard, its addends to the terms of the whole batch."""
        teacher = self.teacher_for(outputs, teacher, batch)
        names = [term.name for term in self.stage.terms]
        if self._whole:
            return [self.loss(name, outputs, teacher, batch) for name in names]
        relates = self.method.relates_samples
        gathered = self.task.gather(outputs, teacher, batch) if relates else (outputs, teacher, batch)
        losses = []
        for name in names:
            if name in self.method.summed_terms:
                losses.append(self.loss(name, outputs, teacher, batch))
            elif relates and name not in self.task.base_terms:
                losses.append(self.loss(name, *gathered) / self.task.ranks.size)  # each rank has the whole batch
            else:
                losses.append(self.loss(name, outputs, teacher, batch) * (len(batch) / batch.whole))
        return losses

    def loss(self, name: str, outputs: TaskOutputs, teacher: TaskOutputs | None, batch: TaskBatch) -> Tensor:
        """One unweighted term, of the task or of the method."""
        if (term := self._base_terms.get(name)) is not None:
            return term.loss(outputs, teacher, batch, self.method.setting.objective.params)
        return self.method.loss(name, outputs, teacher, batch)

    def _apart(self, losses: list[Tensor]) -> list[Tensor]:
        """The weighted sums of the terms without a teacher, and of the others."""
        named = list(zip(self.stage.terms, losses, strict=True))
        sums = []
        for alone in (True, False):
            parts = [
                term.weight_at(self.epoch) * x for term, x in named if (term.name in self.stage.student_terms) == alone
            ]
            sums.append(sum(parts[1:], start=parts[0]))
        return sums

    def backward(self, total: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Update the parameters with their gradients, which are scaled down to the recipe's limit."""
        self._done += 1
        if self.stage.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.stage.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.student)

    @torch.no_grad()
    def _add_to_sums(self, batch: TaskBatch, outputs: TaskOutputs, total: Tensor, losses: list[Tensor]) -> None:
        self.sums[:-1] += torch.stack([x.detach().to(self.sums.dtype) for x in (total, *losses)]) * batch.whole
        self.sums[-1] += len(batch)
        self._meter.update(self.method.predicted(outputs), batch)

    def end_epoch(self) -> Trained:
        """The epoch's mean losses and metrics.

        Raises:
            Diverged: the loss is not finite; all ranks raise alike, and the state is then unusable.
        """
        ranks = self.task.ranks
        loss, *terms, examples = ranks.all_reduce(self.sums).tolist()
        if not math.isfinite(loss):
            raise Diverged(self._divergence(terms))
        self._meter.merge(ranks)
        names = [term.name for term in self.stage.terms]
        means = {name: value / examples for name, value in zip(names, terms, strict=True)}
        return Trained(loss / examples, means, self._meter.result())

    def _divergence(self, terms: list[float]) -> str:
        bad = [t.name for t, value in zip(self.stage.terms, terms, strict=True) if not math.isfinite(value)]
        kind = "NaN" if any(map(math.isnan, terms)) else "infinite"
        where = f"term {', '.join(bad)}" if bad else "their weighted sum"
        return f"the loss became {kind} in epoch {self.epoch} of stage {self.stage.name} ({where})"


def steps_per_epoch(task: Task, recipe: Recipe) -> int:
    """Number of batches of an epoch."""
    return len(slices(task.images.spec.train_count, recipe.batch_size, task.ranks.micro_batches))


def _optimizer(trained: list[nn.Parameter], stage: Stage, device: torch.device) -> torch.optim.Optimizer:
    recipe = stage.recipe
    if recipe.optimizer == "adamw":
        # Capturable keeps the number of steps on the device, so that a CUDA graph can hold the step.
        capturable = device.type == "cuda"
        return torch.optim.AdamW(
            trained, lr=recipe.lr, weight_decay=recipe.weight_decay, foreach=True, capturable=capturable
        )
    if stage.momentum_gap is not None:
        return DOT(trained, recipe.lr, recipe.momentum, stage.momentum_gap, recipe.weight_decay)
    return torch.optim.SGD(
        trained,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )


def weighted_sum(losses: list[Tensor], stage: Stage, epoch: int = 1) -> Tensor:
    """The stage's loss in an epoch (from 1). A term of weight 0 is multiplied, not skipped."""
    parts = [term.weight_at(epoch) * loss for term, loss in zip(stage.terms, losses, strict=True)]
    return sum(parts[1:], start=parts[0])
