"""The papers' objectives in plain torch, apart from the code that is tested, and outputs to compute them of."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LABELS = torch.tensor([1, 0, 3, 2, 1])


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def logits(seed: int) -> Tensor:
    """(5, 4) of a batch with ``LABELS``."""
    return 2 * draw(len(LABELS), 4, seed=seed)


def ce(s: Tensor) -> Tensor:
    """The mean cross-entropy."""
    return -s.log_softmax(dim=1)[torch.arange(len(s)), LABELS].mean()


def kl(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """T^2 / B sum p ln(p / q)."""
    p, q = (t / temperature).softmax(dim=1), (s / temperature).softmax(dim=1)
    return temperature**2 * (p * (p / q).log()).sum() / len(s)


def spatial_means(s: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    """CD without connectors."""
    return torch.stack(
        [(a.mean(dim=(2, 3)) - b.mean(dim=(2, 3))).square().mean() for a, b in zip(s, t, strict=True)]
    ).sum()


def soft_ce(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """Without T^2."""
    return -((t / temperature).softmax(dim=1) * F.log_softmax(s / temperature, dim=1)).sum() / len(s)


def frobenius(x: Tensor) -> Tensor:
    return x.square().sum().sqrt()
