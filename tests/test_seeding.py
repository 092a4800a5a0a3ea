"""Named random streams."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdtable import seeding

PARTS = st.lists(st.one_of(st.text(max_size=8), st.integers(-(2**70), 2**70)), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        (("network", 1, "resnet20"), 6157630903175085838),
        (("batches", 3, "main", 240), 3288242855636847886),
        (("é",), 7817139808275309227),
    ],
)
def test_derived_seeds_are_fixed(parts: tuple[str | int, ...], seed: int) -> None:
    """A change here changes the result of every run under an unchanged identity."""
    assert seeding.derive(*parts) == seed


@given(PARTS)
def test_seeds_fit_63_bits(parts: list[str | int]) -> None:
    assert 0 <= seeding.derive(*parts) < 2**63


@given(PARTS, PARTS)
def test_other_names_give_other_seeds(a: list[str | int], b: list[str | int]) -> None:
    assert (seeding.derive(*a) == seeding.derive(*b)) == (a == b)


def test_parts_do_not_run_together() -> None:
    seeds = {seeding.derive(*parts) for parts in [("a", "b"), ("ab",), ("a,b",), ("a", 1), ("a", "1"), ("a1",)]}
    assert len(seeds) == 6


def test_a_generator_ignores_the_global_one_and_leaves_it_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = torch.rand(5, generator=seeding.generator("draws", 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(torch.rand(5, generator=seeding.generator("draws", 1)), first)
    assert not torch.equal(torch.rand(5, generator=seeding.generator("draws", 2)), first)


def test_a_generator_draws_what_its_seed_draws() -> None:
    plain = torch.Generator().manual_seed(seeding.derive("draws", 1))
    assert torch.equal(torch.rand(5, generator=seeding.generator("draws", 1)), torch.rand(5, generator=plain))


def test_global_stream_is_seeded_and_restored() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeding.global_stream("network", 1):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with seeding.global_stream("network", 1):
        assert torch.equal(torch.rand(4), inside)


def test_global_stream_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()

    def fail() -> None:
        with seeding.global_stream("network", 1):
            torch.rand(4)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
