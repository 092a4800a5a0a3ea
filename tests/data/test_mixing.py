"""Mixed images: torchvision's numbers, from draws of our own."""

from dataclasses import replace

import pytest
import torch
from torchvision.transforms import v2

from kdtable.data.mixing import Mix, Mixing
from kdtable.data.stream import Batch, Stream
from kdtable.distributed import Ranks
from kdtable.recipes.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=6, lr=0.1, milestones=(), crop_padding=1)


def some_batch(count: int = 6, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(4)
    images = torch.rand(count, 3, size, size, generator=draw).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 5, (count,), generator=draw)


def mixed(mix: Mix, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    before = [torch.cat([part[-1:], part]) for part in (images, labels)]
    return mix.images(before[0]), mix.labels(before[1], 5)


@pytest.mark.parametrize("share", [0.3, 0.85])
def test_mixup_is_that_of_torchvision(share: float) -> None:
    images, labels = some_batch()
    given = {"labels": labels, "batch_size": len(labels), "lam": share}
    transform = v2.MixUp(num_classes=5)
    ours = mixed(Mix(share), images, labels)
    for own, expected in zip(ours, (transform.transform(x, given) for x in (images, labels)), strict=True):
        assert torch.equal(own, expected)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(ours[0][0], share * images[0] + (1 - share) * images[-1])


@pytest.mark.parametrize(
    ("share", "across", "down"), [(0.3, 0.5, 0.1), (0.9, 0.0, 0.99), (0.0, 0.4, 0.4), (1.0, 0.3, 0.3)]
)
def test_cutmix_is_that_of_torchvision(
    share: float, across: float, down: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = some_batch()
    ours = Mixing(0.0, 1.0, 5, 8)._cut(share, across, down)
    transform, centres = v2.CutMix(num_classes=5), iter((int(across * 8), int(down * 8)))
    monkeypatch.setattr(transform._dist, "sample", lambda _: torch.tensor([share], dtype=torch.float64))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(centres)]))
        params = transform.make_params([images])
    given = {"labels": labels, "batch_size": len(labels), **params}
    assert ours.share == params["lam_adjusted"]
    for own, expected in zip(
        mixed(ours, images, labels), (transform.transform(x, given) for x in (images, labels)), strict=True
    ):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    shares = torch.tensor([mix.share for mix in Mixing(alpha, 0.0, 5, 8).drawn(1, "main", 1, 4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(variance, rel=0.08)
    assert bool(((shares >= 0) & (shares <= 1)).all())


def test_of_both_each_has_half_of_the_batches() -> None:
    both = list(Mixing(0.2, 1.0, 5, 8).drawn(1, "main", 1, 2000))
    assert sum(mix.box is None for mix in both) == pytest.approx(1000, abs=100)
    assert all(mix.box is None for mix in Mixing(0.2, 0.0, 5, 8).drawn(1, "main", 1, 50))
    assert all(mix.box is not None for mix in Mixing(0.0, 0.2, 5, 8).drawn(1, "main", 1, 50))


def test_draws_depend_on_seed_stage_and_epoch_alone() -> None:
    mixing = Mixing(0.5, 0.5, 5, 8)
    first = list(mixing.drawn(1, "main", 1, 5))
    torch.rand(3)
    assert list(mixing.drawn(1, "main", 1, 5)) == first
    assert list(mixing.drawn(1, "main", 1, 9))[:5] == first
    for other in ((2, "main", 1), (1, "hint", 1), (1, "main", 2)):
        assert list(mixing.drawn(*other, 5)) != first


def stream(recipe: Recipe, ranks: Ranks = Ranks()) -> list[Batch]:  # noqa: B008
    draw = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (13, 3, 8, 8), dtype=torch.uint8, generator=draw)
    made = Stream(
        images, torch.arange(13) % 5, batch_size=6, pad=1, ranks=ranks, mixing=Mixing.of(recipe, num_classes=5, size=8)
    )
    return list(made.epoch(3, "main", 2))


@pytest.mark.parametrize("changed", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_a_stream_mixes_its_own_batches(changed: dict[str, float]) -> None:
    recipe = replace(RECIPE, **changed)
    plain, found = stream(RECIPE), stream(recipe)
    mixing = Mixing.of(recipe, 5, 8)
    assert mixing is not None
    for before, after, mix in zip(plain, found, mixing.drawn(3, "main", 2, len(plain)), strict=True):
        images, labels = mixed(mix, before.images, before.labels)
        assert torch.equal(after.images, images)
        assert torch.equal(after.labels, labels)
        assert torch.equal(after.index, before.index)
        assert torch.allclose(after.labels.sum(dim=1), torch.ones(len(after)))
        assert after.images.is_contiguous(memory_format=torch.channels_last)
        assert (after.view, after.of, after.epoch) == (None, None, 2)


def test_shards_are_those_of_the_mixed_batch() -> None:
    recipe = replace(RECIPE, mixup=0.4, cutmix=1.0)
    shards = [stream(recipe, Ranks(rank, 2)) for rank in range(2)]
    for whole, *parts in zip(stream(recipe), *shards, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert {part.of for part in parts} == {len(whole)}
