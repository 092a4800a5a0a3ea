"""The optimal assignment of ``mgd``: which teacher channels each student channel owns."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

#: Costs are multiplied by this and truncated for the solver.
SCALE: Final = 1e5
EPS: Final = 1e-12

Costs = NDArray[np.int64]


def channel_cost(s: Tensor, t: Tensor) -> Tensor:
    """(C_s, C_t) squared distances of channels as unit vectors over space, summed over the images.

    Args:
        s: (B, C_s, H, W) of the student.
        t: (B, C_t, H, W) of the teacher.
    """
    a, b = (F.normalize(x.flatten(2), dim=2, eps=EPS) for x in (s, t))
    products = a.transpose(0, 1).flatten(1) @ b.transpose(0, 1).flatten(1).T
    return 2 * len(s) - 2 * products


def whole(cost: NDArray[np.float64]) -> Costs:
    """Costs as int64, scaled and truncated."""
    return np.trunc(SCALE * cost).astype(np.int64)


def group_channels(cost: Costs) -> Costs:
    """(C_s, g) teacher channels that each student channel owns alone, ascending; g = C_t // C_s.

    The last C_t - g C_s teacher channels stay without an owner, as in the released code.

    Args:
        cost: (C_s, C_t) of each pair; C_s <= C_t.
    """
    students, teachers = cost.shape
    copies = teachers // students
    mates = optimal_mates(np.tile(cost[:, : copies * students], (copies, 1)))
    return np.sort(mates.reshape(copies, students).T, axis=1)


def match_channels(cost: Costs) -> Costs:
    """(C_s, 1) the one teacher channel that each student channel owns, chosen among all.

    Args:
        cost: (C_s, C_t) of each pair; C_s <= C_t.
    """
    students, teachers = cost.shape
    # Constant rows make the problem square and favour no channel. The released code's 1e10 could overflow.
    square = np.zeros((teachers, teachers), dtype=np.int64)
    square[:students] = cost
    return optimal_mates(square)[:students, None]


def optimal_mates(cost: Costs) -> Costs:
    """(n,) the column of each row in a matching of least cost (n, n); the choice among equals is unspecified.

    Raises:
        RuntimeError: the solver found none; impossible for a square matrix of moderate numbers.
    """
    # Imported here because only mgd needs it, and the command line imports the class for its attributes.
    from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment  # type: ignore[import-untyped]

    rows, columns = np.indices(cost.shape, dtype=np.int32).reshape(2, -1)
    solver = SimpleLinearSumAssignment()
    solver.add_arcs_with_cost(rows, columns, np.ascontiguousarray(cost).ravel())
    status = solver.solve()
    if status != SimpleLinearSumAssignment.OPTIMAL:
        raise RuntimeError(f"no assignment of {len(cost)} channels: {status}")
    return np.array([solver.right_mate(row) for row in range(len(cost))], dtype=np.int64)


def check_finite(cost: Tensor) -> None:
    """Raise `ValueError` for a cost that is not finite."""
    if not cost.isfinite().all():
        raise ValueError("channels cannot be matched: a feature map is not finite")


def matched(cost: Tensor, *, alone: bool) -> Tensor:
    """(C_s, g) teacher channels of each student channel for mean costs (C_s, C_t); g = 1 if ``alone``.

    Raises:
        ValueError: a cost is not finite.
    """
    check_finite(cost)
    costs = whole(cost.cpu().double().numpy())
    return torch.from_numpy(match_channels(costs) if alone else group_channels(costs))
