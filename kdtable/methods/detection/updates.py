"""When ``mgd`` on detectors matches channels anew: its schedule is in iterations of the released training."""

from collections.abc import Iterable


def update_iterations(total: int, every: int, slow_every: int, slow_from: int) -> list[int]:
    """Iterations (from 0) before which channels are matched.

        update_iterations(90_000, 5_000, 31_000, 20_000)  # [0, 5000, 10000, 15000, 31000, 62000]

    Args:
        total: iterations of the training.
        every: at its multiples, below ``slow_from``.
        slow_every: at its multiples, from ``slow_from`` on.
        slow_from: see above.
    """
    return [now for now in range(total) if now % (every if now < slow_from else slow_every) == 0]


def update_epochs(iterations: Iterable[int], total: int, epochs: int) -> frozenset[int]:
    """Epochs (from 1) of a training of any length before which channels are matched.

    For each of the iterations out of ``total`` it is the first epoch that begins at it or later, in proportion.
    """
    return frozenset(-(-now * epochs // total) + 1 for now in iterations)
