"""When ``mgd`` on detectors matches channels anew: its schedule is in iterations."""


def update_iterations(total: int, every: int = 5_000, slow_every: int = 31_000, slow_from: int = 20_000) -> list[int]:
    """Iterations (from 0) before which channels are matched: the first one, then as the released code has it.

        update_iterations(90_000)  # [0, 5000, 10000, 15000, 31000, 62000]

    Args:
        total: iterations of the training.
        every: at its multiples, below ``slow_from``.
        slow_every: at its multiples, from ``slow_from`` on.
        slow_from: see above.
    """
    return [now for now in range(total) if now % (every if now < slow_from else slow_every) == 0]


def update_epochs(iterations: list[int], steps: int) -> frozenset[int]:
    """Epochs (from 1) before which channels are matched: for each iteration the first that begins at it or later.

    Args:
        iterations: as :func:`update_iterations` returns them.
        steps: iterations of an epoch.
    """
    return frozenset(-(-now // steps) + 1 for now in iterations)
