"""The draws of negatives have the distribution that the benchmark's sampler has.

Statistics are compared with fixed seeds, so a test passes always or never; its limits lie five or more standard
deviations out.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtable.methods.parts import negatives
from kdtable.methods.parts.negatives import ClassNegatives

SIZES = {"equal": (12, 12, 12), "unequal": (3, 20, 9, 5), "odd": (7, 10), "two": (16, 16)}
Draw = Callable[[Tensor, Tensor, int, torch.Generator], "Tensor | None"]


def by_keys(allowed: Tensor, others: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return negatives._draw_by_keys(allowed, count, generator)


PATHS = pytest.mark.parametrize("path", [negatives._draw_by_bytes, by_keys], ids=["bytes", "keys"])


def labels_of(sizes: tuple[int, ...], seed: int = 0) -> Tensor:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def sampler(labels: Tensor, count: int, seed: int = 1) -> ClassNegatives:
    return ClassNegatives(labels, count, torch.Generator().manual_seed(seed))


def chi_square(observed: Tensor, expected: Tensor) -> Tensor:
    return ((observed - expected) ** 2 / expected).sum(-1)


def check_subsets(drawn: Tensor, index: Tensor, labels: Tensor, count: int) -> None:
    assert drawn.shape == (len(index), count)
    assert drawn.dtype == torch.int64
    assert (labels[drawn] != labels[index].unsqueeze(1)).all()
    in_order = drawn.sort(dim=1).values
    assert (in_order[:, 1:] > in_order[:, :-1]).all(), "a negative was drawn twice"


def masks(labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    allowed = labels[index].unsqueeze(1) != labels
    return allowed, allowed.sum(dim=1)


def repeated(path: Draw, labels: Tensor, row: int, count: int, times: int = 4000) -> Tensor:
    """(times, count): independent draws for one sample, as the rows of large batches."""
    generator = torch.Generator().manual_seed(3)
    allowed, others = masks(labels, torch.full((500,), row))
    parts: list[Tensor] = []
    while len(parts) * 500 < times:
        drawn = path(allowed, others, count, generator)
        if drawn is not None:
            parts.append(drawn)
    return torch.cat(parts)


@PATHS
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_other_sample_is_drawn_equally_often(path: Draw, sizes: tuple[int, ...]) -> None:
    labels = labels_of(sizes)
    for label in range(len(sizes)):
        row = int((labels == label).nonzero()[0])
        others = len(labels) - sizes[label]
        count = max(1, others // 3)
        drawn = repeated(path, labels, row, count)
        times = len(drawn)
        counts = torch.bincount(drawn.flatten(), minlength=len(labels)).double()
        assert (counts[labels == label] == 0).all()
        expected = times * count / others
        # Each count is binomial, and they sum to a constant: scaled, their squares are chi-square.
        scaled = (counts[labels != label] - expected).square().sum() / (expected * (1 - count / others))
        freedom = others - 1
        statistic = scaled * freedom / others
        assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


@PATHS
def test_every_subset_is_equally_likely(path: Draw) -> None:
    """All 15 pairs out of six others: more than the marginals."""
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1])
    drawn = repeated(path, labels, 0, 2, times=15000).sort(dim=1).values
    counts = torch.bincount(drawn[:, 0] * 8 + drawn[:, 1], minlength=64).double()
    seen = counts[counts > 0]
    assert len(seen) == 15
    assert chi_square(seen, torch.full_like(seen, len(drawn) / 15)) < 14 + 5 * 28**0.5


@PATHS
def test_rows_of_a_batch_are_independent(path: Draw) -> None:
    """Two rows share K^2 / others of their negatives on average."""
    labels = labels_of((20, 20, 20))
    count, others = 10, 40
    drawn = repeated(path, labels, 0, count, times=4000)
    overlap = (drawn[0::2].unsqueeze(2) == drawn[1::2].unsqueeze(1)).sum(dim=(1, 2)).double()
    mean = count**2 / others
    variance = mean * (1 - count / others) * (others - count) / (others - 1)
    assert abs(overlap.mean() - mean) < 5 * (variance / len(overlap)) ** 0.5


def test_every_call_draws_afresh() -> None:
    labels = labels_of((20, 20, 20))
    source = sampler(labels, 10)
    index = torch.arange(60)
    first, second = source.draw(index), source.draw(index)
    overlap = (first.unsqueeze(2) == second.unsqueeze(1)).sum(dim=(1, 2)).double()
    assert abs(overlap.mean() - 2.5) < 5 * (2.5 / 60) ** 0.5
    assert torch.equal(sampler(labels, 10).draw(index), first), "a generator's seed fixes the draws"


def test_the_fallback_is_used_when_bytes_do_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labels_of((9, 4, 6))
    index = torch.arange(len(labels))
    monkeypatch.setattr(negatives, "_draw_by_bytes", lambda *_: None)
    source = sampler(labels, 5)
    check_subsets(source.draw(index), index, labels, 5)
    expected = torch.Generator().manual_seed(1)
    allowed, _ = masks(labels, index)
    assert torch.equal(sampler(labels, 5).draw(index), negatives._draw_by_keys(allowed, 5, expected))


def test_bytes_do_nearly_always() -> None:
    labels = labels_of((100,) * 10)
    allowed, others = masks(labels, torch.arange(64))
    generator = torch.Generator().manual_seed(0)
    missed = sum(negatives._draw_by_bytes(allowed, others, 300, generator) is None for _ in range(100))
    assert missed <= 2


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((2, 2), 2),
        ((2, 2), 1),
        ((1, 1), 1),
        ((1, 2, 2), 3),
        ((4, 4), 4),
        ((5, 6), 5),
        ((8, 8), 8),
        ((13, 4), 4),
        ((50, 51), 1),
        ((50, 51), 49),
        ((300, 301, 302), 601),
    ],
)
def test_small_and_extreme_sizes(sizes: tuple[int, ...], count: int) -> None:
    labels = labels_of(sizes)
    index = torch.arange(len(labels))
    source = sampler(labels, count)
    assert not source.with_replacement
    for _ in range(5):
        check_subsets(source.draw(index), index, labels, count)


def test_all_others_are_drawn_when_k_is_their_number() -> None:
    labels = labels_of((6, 6))
    drawn = sampler(labels, 6).draw(torch.arange(12))
    for row, label in zip(drawn, labels, strict=True):
        assert torch.equal(row.sort().values, (labels != label).nonzero().squeeze(1))


@pytest.mark.parametrize("sizes", [(3, 5), (2, 9, 4)])
def test_with_replacement_where_k_exceeds_the_others(sizes: tuple[int, ...]) -> None:
    labels, count = labels_of(sizes), 4000
    source = sampler(labels, count)
    assert source.with_replacement
    index = torch.arange(len(labels))
    drawn = source.draw(index)
    assert drawn.shape == (len(labels), count)
    for row, label in zip(drawn, labels, strict=True):
        counts = torch.bincount(row, minlength=len(labels)).double()
        assert (counts[labels == label] == 0).all()
        others = counts[labels != label]
        freedom = len(others) - 1
        assert chi_square(others, torch.full_like(others, count / len(others))) < freedom + 5 * (2 * freedom) ** 0.5


def test_replacement_is_decided_by_the_largest_class() -> None:
    labels = labels_of((3, 20, 9, 5))
    assert not sampler(labels, 17).with_replacement
    assert sampler(labels, 18).with_replacement


def test_positives_are_uniform_in_their_own_class() -> None:
    labels = labels_of((3, 9, 5))
    source = sampler(labels, 2)
    for label, size in enumerate((3, 9, 5)):
        row = int((labels == label).nonzero()[0])
        drawn = source.same_class(torch.full((6000,), row))
        counts = torch.bincount(drawn, minlength=len(labels)).double()
        own = counts[labels == label]
        assert own.sum() == 6000
        assert chi_square(own, torch.full_like(own, 6000 / size)) < size - 1 + 5 * (2 * (size - 1)) ** 0.5


@pytest.mark.parametrize("labels", [torch.zeros(5, dtype=torch.int64), torch.full((4,), 3)])
def test_one_class_alone_is_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="two classes"):
        sampler(labels, 2)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30).filter(lambda x: len(set(x)) > 1), st.data())
def test_any_labels(values: list[int], data: st.DataObject) -> None:
    labels = torch.tensor(values)
    count = data.draw(st.integers(1, 35), label="count")
    source = sampler(labels, count, data.draw(st.integers(0, 2**32), label="seed"))
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=9), label="index"))
    drawn = source.draw(index)
    if source.with_replacement:
        assert drawn.shape == (len(index), count)
        assert (labels[drawn] != labels[index].unsqueeze(1)).all()
    else:
        check_subsets(drawn, index, labels, count)
    assert torch.equal(labels[source.same_class(index)], labels[index])
