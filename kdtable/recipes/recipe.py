"""The recipe, as data: how a network is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Gt, Le, Lt

#: What ``views`` is where images with labels come in a weak and a strong view.
WEAK_STRONG: Final = "weak-strong"

#: Fields that were added later, and the default that reproduces earlier runs.
_NEUTRAL: Final[dict[str, Any]] = {
    "first_epoch_lr": None,
    "crop_fill": "zero",
    "warmup_epochs": 0,
    "warmup_factor": 0.1,
    "optimizer": "sgd",
    "schedule": "steps",
    "lr_min": 0.0,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "randaugment": 0,
    "randaugment_magnitude": 9,
    "ema": 0.0,
    "iterations": 0,
    "warmup_iterations": 0,
    "clip": 0.0,
    "sides": [],
    "views": "",
}

#: Values of fields while nothing reads them, so that equal training has one identity.
_IDLE: Final[dict[str, Any]] = {
    "milestones": (),
    "lr_factor": 0.1,
    "lr_min": 0.0,
    "momentum": 0.9,
    "nesterov": False,
    "randaugment_magnitude": 9,
}

#: Numbers with ranges that pydantic checks.
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(0)]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained: by default SGD with a step schedule.

    Example:
        recipe = Recipe(epochs=240, batch_size=64, lr=0.05, milestones=(150, 180, 210))
        recipe.lr_at(151)  # 0.005

    The later fields follow torchvision's reference training; each docstring where it is computed says how.

    Attributes:
        epochs: number of passes over the training set; epochs are numbered from 1.
        batch_size: images per step.
        lr: highest learning rate: before the first milestone, or at the start of a cosine or a line.
        milestones: the rate is multiplied by ``lr_factor`` once for each milestone below the epoch's number.
        lr_factor: see ``milestones``.
        momentum: of SGD, without dampening.
        nesterov: whether to use Nesterov momentum.
        weight_decay: on every trained parameter, batch-norms and biases included.
        crop_padding: pixels added on each side before the random crop.
        crop_fill: these pixels are black, or mirrored at the image's edges.
        first_epoch_lr: learning rate of the first epoch, if it differs.
        warmup_epochs: epochs over which the rate rises linearly; the first starts at ``warmup_factor`` times the rate.
        warmup_factor: see ``warmup_epochs``.
        optimizer: ``sgd``, or ``adamw`` with torch's betas (0.9, 0.999) and eps, which reads neither ``momentum`` nor
            ``nesterov``.
        schedule: ``steps`` at the milestones; or ``cosine`` or ``linear``, which fall from ``lr`` in the first epoch
            after the warm-up towards ``lr_min``, which the epoch after the last one would have; or ``whole-cosine``, a
            cosine that begins in the first epoch, and that the warm-up replaces. Rates change between epochs, never
            within one.
        lr_min: see ``schedule``.
        label_smoothing: part of the label's weight that all classes share, in the task's term ``ce`` alone.
        mixup: alpha of MixUp, with Beta(alpha, alpha) shares; 0 for none (`kdtable.data.mixing`).
        cutmix: the same of CutMix. With both, each batch is mixed by one or the other, as often.
        randaugment: operations of RandAugment on each training image; 0 for none (`kdtable.data.randaugment`).
        randaugment_magnitude: their strength.
        ema: decay of a moving average of the student over the main stage's steps, which is then what is measured and
            kept; 0 for none (`kdtable.training.average`).
        iterations: number of steps of a recipe that counts in steps, as those of detectors do; 0 for one that counts in
            epochs. Its milestones are steps, its schedule falls from step to step, and ``epochs`` is how many the steps
            take, the last of which may be shorter.
        warmup_iterations: steps over which the rate rises linearly, from ``warmup_factor`` times the rate.
        sides: of a detector: what an image's shorter side is resized to in training, one of these at random; none for
            the size of the data set.
        clip: largest norm of all gradients together, to which greater ones are scaled down; 0 for no limit.
        views: how two views of an image are drawn: for training without labels (`kdtable.data.views`), or with them,
            ``weak-strong`` (`kdtable.data.weak_strong`); "" for one view.
    """

    epochs: int
    batch_size: int
    lr: Positive
    milestones: tuple[int, ...]
    lr_factor: NotNegative = 0.1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4
    crop_padding: Count = 4
    first_epoch_lr: Positive | None = None
    crop_fill: Literal["zero", "reflect"] = "zero"
    warmup_epochs: Count = 0
    warmup_factor: NotNegative = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["steps", "cosine", "linear", "whole-cosine"] = "steps"
    lr_min: NotNegative = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    randaugment: Count = 0
    randaugment_magnitude: Annotated[int, Ge(0), Le(30)] = 9
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    iterations: Count = 0
    warmup_iterations: Count = 0
    clip: NotNegative = 0.0
    sides: tuple[int, ...] = ()
    views: Literal["", "moco-v2", "moco-cifar", "weak-strong"] = ""

    def lr_at(self, epoch: int) -> float:
        """Learning rate of epoch ``epoch`` (from 1)."""
        if epoch == 1 and self.first_epoch_lr is not None:
            return self.first_epoch_lr
        return self._decayed(epoch) * self._warmth(epoch)

    def _decayed(self, epoch: int) -> float:
        """The rate without warm-up."""
        if self.schedule == "steps":
            return self.lr * self.lr_factor ** sum(epoch > milestone for milestone in self.milestones)
        warmup = self.warmup_epochs
        if self.schedule == "whole-cosine":
            if epoch <= warmup:
                return self.lr
            warmup = 0
        return self._between(max(0, epoch - 1 - warmup) / max(1, self.epochs - warmup))

    def _between(self, passed: float) -> float:
        """The rate of a cosine or line after a part of the way."""
        left = 1 - passed if self.schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2
        return self.lr_min + (self.lr - self.lr_min) * left

    def _warmth(self, epoch: int) -> float:
        if epoch > self.warmup_epochs:
            return 1.0
        progress = (epoch - 1) / self.warmup_epochs
        return self.warmup_factor * (1 - progress) + progress

    @property
    def stepwise(self) -> bool:
        """Whether the learning rate changes within an epoch."""
        return self.iterations > 0 or self.warmup_iterations > 0

    def lr_of_step(self, step: int, epoch: int) -> float:
        """Learning rate of a step (from 0, over all epochs) in an epoch (from 1)."""
        rate = self._decayed_at_step(step) if self.iterations else self.lr_at(epoch)
        if step >= self.warmup_iterations:
            return rate
        progress = step / self.warmup_iterations
        return rate * (self.warmup_factor * (1 - progress) + progress)

    def _decayed_at_step(self, step: int) -> float:
        """The rate of a recipe that counts in steps, without warm-up."""
        if self.schedule == "steps":
            return self.lr * self.lr_factor ** sum(step >= milestone for milestone in self.milestones)
        passed = max(0, step - self.warmup_iterations) / max(1, self.iterations - self.warmup_iterations)
        return self._between(passed)

    def in_steps(self, steps: int) -> "Recipe":
        """The same recipe counting in steps, ``steps`` of which are an epoch; itself if it does."""
        if self.iterations:
            return replace(self, epochs=-(-self.iterations // steps))
        return replace(
            self,
            iterations=self.epochs * steps,
            milestones=tuple(milestone * steps for milestone in self.milestones),
            warmup_iterations=self.warmup_iterations or self.warmup_epochs * steps,
            warmup_epochs=0,
            first_epoch_lr=None,
        )

    def over(self, iterations: int, steps: int) -> "Recipe":
        """The recipe in ``iterations`` steps, ``steps`` of which are an epoch; milestones and warm-up in proportion."""
        own = self.in_steps(steps)
        moved = tuple(in_proportion(m, iterations, own.iterations) for m in own.milestones)
        warmup = in_proportion(own.warmup_iterations, iterations, own.iterations)
        return replace(own, iterations=iterations, milestones=moved, warmup_iterations=warmup).in_steps(steps)

    def scaled(self, epochs: int) -> "Recipe":
        """The same recipe over ``epochs`` epochs, with milestones in proportion; halves are rounded up."""
        moved = tuple(in_proportion(m, epochs, self.epochs) for m in self.milestones)
        warmup = in_proportion(self.warmup_epochs, epochs, self.epochs)
        own = replace(self, epochs=epochs, milestones=moved, warmup_epochs=warmup)
        if not self.iterations:
            return own
        counts = (in_proportion(n, epochs, self.epochs) for n in (self.iterations, self.warmup_iterations))
        return replace(own, iterations=next(counts), warmup_iterations=next(counts))

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def stream(self) -> tuple[Any, ...]:
        """The fields that the batches depend on; runs of one cohort have them in common."""
        crops = self.crop_padding, self.crop_fill
        mixed = self.mixup, self.cutmix, self.randaugment, self.randaugment_magnitude
        return self.batch_size, self.sides, *crops, *mixed, self.views

    def idle(self) -> dict[str, str]:
        """The fields that nothing reads, each with what would read it: ``{"lr_min": "schedule=cosine"}``."""
        found = {"lr_min": "schedule=cosine"} if self.schedule == "steps" else {}
        if self.schedule != "steps":
            found |= dict.fromkeys(("milestones", "lr_factor"), "schedule=steps")
        if self.optimizer != "sgd":
            found |= dict.fromkeys(("momentum", "nesterov"), "optimizer=sgd")
        if not self.randaugment:
            found["randaugment_magnitude"] = "randaugment=2"
        return found

    def settled(self) -> "Recipe":
        """The same recipe, with one value for each of the fields that nothing reads."""
        return replace(self, **{name: _IDLE[name] for name in self.idle()})

    def for_image_folders(self) -> "Recipe":
        """The same recipe for image folders, whose images are cropped without padding."""
        return replace(self, crop_padding=0, crop_fill="zero")

    def identity(self) -> dict[str, Any]:
        """The fields that enter a run's identity: all except later ones at their neutral default.

        A new field therefore leaves the identities of older runs unchanged.
        """
        return {
            name: value
            for name, value in self.full_identity().items()
            if name not in _NEUTRAL or value != _NEUTRAL[name]
        }

    def full_identity(self) -> dict[str, Any]:
        """Every field, as a JSON value."""
        # Not asdict, which copies every value deeply: grids have tens of thousands of runs.
        lists = {"milestones": list(self.milestones), "sides": list(self.sides)}
        return {field.name: getattr(self, field.name) for field in fields(self)} | lists

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Recipe":
        """Read a stored recipe."""
        lists = {name: tuple(values[name]) for name in ("milestones", "sides") if name in values}
        return cls(**{**values, **lists})


def in_proportion(count: int, epochs: int, of: int) -> int:
    """Scale ``count`` by ``epochs`` / ``of``; halves are rounded up."""
    return (2 * count * epochs + of) // (2 * of)
