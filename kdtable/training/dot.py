"""The optimiser of DOT: Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023.

SGD with two momentum buffers, one for the gradient g of the task's loss and one for the gradient h of the distillation
loss, of which the second forgets more slowly:

    v <- (mu - delta) v + g + weight_decay p,    w <- (mu + delta) w + h,    p <- p - lr (v + w)

Buffers start as the first gradient. A parameter that only one loss reaches uses mu; one that only the distillation loss
reaches gets no weight decay in its first step, as in the released code. delta = 0 is SGD on the sum of the losses.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class DOT(torch.optim.Optimizer):
    """SGD that keeps the momenta of two losses apart.

    Args:
        params: what it trains, one group.
        lr: learning rate.
        momentum: mu.
        delta: by how much the task's momentum is lower, and the other's higher.
        weight_decay: part of the task's gradient.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float, delta: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay})
        self._task: list[Tensor | None] = []
        self._distillation: list[Tensor | None] = []

    @property
    def _params(self) -> list[nn.Parameter]:
        found: list[nn.Parameter] = self.param_groups[0]["params"]
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of both losses."""
        super().zero_grad(set_to_none)
        self._task, self._distillation = [], []

    def backward(self, task: Tensor, distillation: Tensor) -> None:
        """Compute the gradients of two losses of one forward pass, and keep them apart."""
        self._task = list(torch.autograd.grad(task, self._params, retain_graph=True, allow_unused=True))
        self._distillation = list(torch.autograd.grad(distillation, self._params, allow_unused=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters by the gradients of the last :meth:`backward`."""
        group = self.param_groups[0]
        for p, g, h in zip(self._params, self._task, self._distillation, strict=True):
            if g is None and h is None:
                continue
            state, delta, decay = self.state[p], group["delta"] if g is not None and h is not None else 0.0, 0.0
            if g is not None or state:
                decay = group["weight_decay"]
            moved = torch.zeros_like(p)
            if g is not None:
                moved += _moved(state, "momentum_buffer", group["momentum"] - delta, g + decay * p)
            if h is not None:
                gradient = h if g is not None else h + decay * p
                moved += _moved(state, "kd_momentum_buffer", group["momentum"] + delta, gradient)
            p.sub_(group["lr"] * moved)


def _moved(state: dict[str, Any], name: str, momentum: float, gradient: Tensor) -> Tensor:
    """A momentum buffer after a gradient; it starts as the first one."""
    if name in state:
        state[name].mul_(momentum).add_(gradient)
    else:
        state[name] = gradient.clone()
    buffer: Tensor = state[name]
    return buffer
