"""The recipe, as data: how a network is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Gt, Lt

#: Fields that were added later, and the default that reproduces earlier runs.
_NEUTRAL: Final[dict[str, Any]] = {
    "first_epoch_lr": None,
    "crop_fill": "zero",
    "warmup_epochs": 0,
    "warmup_factor": 0.1,
}

#: Numbers with ranges that pydantic checks.
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(0)]


@dataclass(frozen=True, slots=True)
class Recipe:
    """SGD with a step schedule.

    Example:
        recipe = Recipe(epochs=240, batch_size=64, lr=0.05, milestones=(150, 180, 210))
        recipe.lr_at(151)  # 0.005

    Attributes:
        epochs: number of passes over the training set; epochs are numbered from 1.
        batch_size: images per step.
        lr: learning rate before the first milestone.
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

    def lr_at(self, epoch: int) -> float:
        """Learning rate of epoch ``epoch`` (from 1)."""
        if epoch == 1 and self.first_epoch_lr is not None:
            return self.first_epoch_lr
        passed = sum(epoch > milestone for milestone in self.milestones)
        return self.lr * self.lr_factor**passed * self._warmth(epoch)

    def _warmth(self, epoch: int) -> float:
        if epoch > self.warmup_epochs:
            return 1.0
        progress = (epoch - 1) / self.warmup_epochs
        return self.warmup_factor * (1 - progress) + progress

    def scaled(self, epochs: int) -> "Recipe":
        """The same recipe over ``epochs`` epochs, with milestones in proportion; halves are rounded up."""
        moved = tuple(in_proportion(m, epochs, self.epochs) for m in self.milestones)
        warmup = in_proportion(self.warmup_epochs, epochs, self.epochs)
        return replace(self, epochs=epochs, milestones=moved, warmup_epochs=warmup)

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
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"milestones": list(self.milestones)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Recipe":
        """Read a stored recipe."""
        return cls(**{**values, "milestones": tuple(values["milestones"])})


def in_proportion(count: int, epochs: int, of: int) -> int:
    """Scale ``count`` by ``epochs`` / ``of``; halves are rounded up."""
    return (2 * count * epochs + of) // (2 * of)
