"""How a network is trained: the recipe, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, Final

#: Settings that were added later, with the default that means what was done before them.
_NEUTRAL: Final[dict[str, Any]] = {
    "first_epoch_lr": None,
    "crop_fill": "zero",
    "warmup_epochs": 0,
    "warmup_factor": 0.1,
}

#: What lies around an image before the random crop: black, or the image itself, mirrored at its edges.
CROP_FILLS: Final = ("zero", "reflect")


@dataclass(frozen=True, slots=True)
class Recipe:
    """SGD with a step schedule.

    Attributes:
        epochs: number of passes over the training set; epochs are numbered from 1.
        batch_size: images per step.
        lr: learning rate before the first milestone.
        milestones: the rate is multiplied by ``lr_factor`` once for each milestone below the epoch's number.
        lr_factor: see ``milestones``.
        momentum: of SGD, without dampening.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: on every trained parameter, batch-norms and biases included.
        crop_padding: pixels around an image before the random crop.
        crop_fill: what these pixels are, one of ``CROP_FILLS``.
        first_epoch_lr: learning rate of the first epoch alone, where it differs.
        warmup_epochs: epochs over which the rate rises linearly, from ``warmup_factor`` of it in the first.
        warmup_factor: see ``warmup_epochs``.
    """

    epochs: int
    batch_size: int
    lr: float
    milestones: tuple[int, ...]
    lr_factor: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    crop_padding: int = 4
    first_epoch_lr: float | None = None
    crop_fill: str = "zero"
    warmup_epochs: int = 0
    warmup_factor: float = 0.1

    def lr_at(self, epoch: int) -> float:
        """Learning rate of epoch ``epoch`` (from 1)."""
        if epoch == 1 and self.first_epoch_lr is not None:
            return self.first_epoch_lr
        passed = sum(epoch > milestone for milestone in self.milestones)
        return self.lr * self.lr_factor**passed * self._warmth(epoch)

    def _warmth(self, epoch: int) -> float:
        if epoch > self.warmup_epochs:
            return 1.0
        share = (epoch - 1) / self.warmup_epochs
        return self.warmup_factor * (1 - share) + share

    def scaled(self, epochs: int) -> "Recipe":
        """The same recipe over ``epochs`` epochs: milestones move in proportion, halves are rounded up."""
        moved = tuple(in_proportion(m, epochs, self.epochs) for m in self.milestones)
        warmup = in_proportion(self.warmup_epochs, epochs, self.epochs)
        return replace(self, epochs=epochs, milestones=moved, warmup_epochs=warmup)

    def for_image_folders(self) -> "Recipe":
        """The same recipe for images of many sizes, which are cropped at random as they are."""
        return replace(self, crop_padding=0, crop_fill="zero")

    def unusable(self) -> str | None:
        """What is wrong with a value, in one sentence; ``None`` if all can be used."""
        if not (self.lr > 0 and isfinite(self.lr)):
            return f"a learning rate of {self.lr} trains nothing: use a positive one"
        if self.first_epoch_lr is not None and self.first_epoch_lr <= 0:
            return f"first_epoch_lr must be positive, not {self.first_epoch_lr}"
        if not 0 <= self.momentum < 1:
            return f"momentum lies in [0, 1), not {self.momentum}"
        if self.nesterov and self.momentum == 0:
            return "nesterov needs a positive momentum"
        return self._unusable_crop() or next(
            (
                f"{name} must not be negative, it is {getattr(self, name)}"
                for name in ("weight_decay", "crop_padding", "lr_factor", "warmup_epochs", "warmup_factor")
                if getattr(self, name) < 0
            ),
            None,
        )

    def _unusable_crop(self) -> str | None:
        if self.crop_fill not in CROP_FILLS:
            return f"crop_fill is one of {', '.join(CROP_FILLS)}, not '{self.crop_fill}'"
        return None

    def identity(self) -> dict[str, Any]:
        """What enters a run's identity: all of it, but for settings that came later and are at their neutral default.

        So a new setting leaves the identities of older runs as they are.
        """
        return {
            name: value
            for name, value in self.full_identity().items()
            if name not in _NEUTRAL or value != _NEUTRAL[name]
        }

    def full_identity(self) -> dict[str, Any]:
        """Every field, as JSON has it."""
        # Not asdict, which copies every value deeply: grids have tens of thousands of runs.
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"milestones": list(self.milestones)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Recipe":
        """From a stored recipe."""
        return cls(**{**values, "milestones": tuple(values["milestones"])})


def in_proportion(count: int, epochs: int, of: int) -> int:
    """``count`` of ``of`` epochs as a number of ``epochs`` epochs; halves are rounded up."""
    return (2 * count * epochs + of) // (2 * of)
