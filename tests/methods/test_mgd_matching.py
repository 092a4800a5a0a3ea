"""MGD's assignments of channels cost the least."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from kdtable.methods.parts.assignment import (
    channel_cost,
    group_channels,
    match_channels,
    matched,
    optimal_mates,
)
from tests.methods.test_mgd import draw


def costs(rows: int, columns: int, seed: int, levels: int) -> Any:
    """With few levels there are many ties."""
    return np.random.default_rng(seed).integers(0, levels, (rows, columns))


def least(cost: Any) -> int:
    rows, columns = linear_sum_assignment(cost)
    return int(cost[rows, columns].sum())


@given(st.integers(1, 9), st.integers(0, 50), st.sampled_from((2, 5, 400_000)))
def test_a_matching_costs_the_least(size: int, seed: int, levels: int) -> None:
    cost = costs(size, size, seed, levels)
    mates = optimal_mates(cost)
    assert sorted(mates) == list(range(size))
    assert cost[np.arange(size), mates].sum() == least(cost)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(0, 50), st.sampled_from((3, 400_000)))
def test_groups_are_apart_and_cost_the_least(students: int, copies: int, rest: int, seed: int, levels: int) -> None:
    used = students * copies
    cost = costs(students, used + min(rest, students - 1), seed, levels)
    found = group_channels(cost)
    assert found.shape == (students, copies)
    assert sorted(found.ravel()) == list(range(used))  # the last channels take no part
    assert (np.diff(found, axis=1) > 0).all()
    assert np.take_along_axis(cost, found, axis=1).sum() == least(np.tile(cost[:, :used], (copies, 1)))


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 50))
def test_a_match_is_found_among_all_channels(students: int, more: int, seed: int) -> None:
    cost = costs(students, students + more, seed, 400_000)
    found = match_channels(cost)
    assert len(set(found.ravel())) == students
    assert np.take_along_axis(cost, found, axis=1).sum() == least(cost)


def test_channels_that_were_shuffled_find_each_other() -> None:
    t = draw(5, 8, 3, 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    scaled = 3 * t[:, order]  # lengths do not count
    for alone in (False, True):
        assert torch.equal(matched(channel_cost(scaled, t) / 5, alone=alone)[:, 0], order)


def test_costs_by_hand() -> None:
    s, t = draw(4, 2, 3, 3), draw(4, 3, 3, 3, seed=1)
    a, b = (x.flatten(2) / x.flatten(2).norm(dim=2, keepdim=True) for x in (s, t))
    expected = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(dim=3).sum(dim=0)
    torch.testing.assert_close(channel_cost(s, t), expected)
    assert channel_cost(s, -s).diag().allclose(torch.tensor(16.0, dtype=s.dtype))
    assert channel_cost(torch.zeros_like(s), t).eq(8).all()


def test_maps_that_are_not_finite_cannot_be_matched() -> None:
    with pytest.raises(ValueError, match="not finite"):
        matched(torch.full((2, 2), torch.nan), alone=False)
