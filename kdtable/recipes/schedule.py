"""Schedules of loss weights over the epochs of a stage. Does not import torch."""

from dataclasses import dataclass, fields, replace
from typing import Any

from kdtable.recipes.recipe import Count, NotNegative, in_proportion


@dataclass(frozen=True, slots=True)
class Schedule:
    """A factor for a loss weight in each epoch; constant by default.

    Example:
        Schedule(steps=(31,), factor=0.1).at(31)  # 0.1

    Attributes:
        off_until: last epoch in which the factor is 0 (0: none).
        steps: epochs from whose start the weight is multiplied by ``factor``, once for each.
        factor: see ``steps``.
        ramp: epochs over which the weight rises linearly, from 0 in the first (0: no ramp).
        warmup: the weight rises linearly up to this epoch, from 1 / ``warmup`` in the first (0: no warm-up).
    """

    off_until: Count = 0
    steps: tuple[Count, ...] = ()
    factor: NotNegative = 1.0
    ramp: Count = 0
    warmup: Count = 0

    def at(self, epoch: int) -> float:
        """The factor of an epoch, counted from 1."""
        if epoch <= self.off_until:
            return 0.0
        risen = min(1.0, (epoch - 1) / self.ramp) if self.ramp else 1.0
        warmed = min(1.0, epoch / self.warmup) if self.warmup else 1.0
        return risen * warmed * self.factor ** sum(epoch >= step for step in self.steps)

    def scaled(self, epochs: int, of: int) -> "Schedule":
        """The same schedule over ``epochs`` epochs instead of ``of``; halves are rounded up."""
        return replace(
            self,
            off_until=in_proportion(self.off_until, epochs, of),
            steps=tuple(in_proportion(step, epochs, of) for step in self.steps),
            ramp=in_proportion(self.ramp, epochs, of),
            warmup=in_proportion(self.warmup, epochs, of),
        )

    def identity(self) -> dict[str, Any]:
        """The fields that enter a run's identity: those that differ from a constant schedule."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value != getattr(CONSTANT, name)
        }


CONSTANT = Schedule()
