import pytest
import torch

from kdtable.models import build
from kdtable.models.dropout import dropped, on_shard
from kdtable.models.wrn_28_2 import Block

ONES = torch.ones(50, 400)
WRAP = 2**64


def mixed(z: int) -> int:
    """splitmix64 in Python's unbounded numbers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WRAP
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WRAP
    return z ^ (z >> 31)


def batch(number: int) -> torch.Tensor:
    return torch.tensor(number)


@pytest.mark.parametrize(("seed", "number"), [(0, 1), (2**62 - 1, 40_000)])
def test_equals_unbounded_arithmetic(seed: int, number: int) -> None:
    step = 0x9E3779B97F4A7C15
    stream = mixed((number * step + seed) % WRAP)
    kept = [mixed((stream + place * step) % WRAP) >> 40 >= round(0.2 * 2**24) for place in range(60)]
    assert (dropped(torch.ones(6, 10), 0.2, seed, batch(number)) > 0).flatten().tolist() == kept


def test_the_share_is_kept_and_the_mean_too() -> None:
    out = dropped(ONES, 0.2, 7, batch(3))
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=5 * (0.16 / ONES.numel()) ** 0.5)
    assert out.unique().tolist() == pytest.approx([0, 1.25])
    for axis in (0, 1):  # neither images nor channels are alike
        assert (out.mean(axis) - 1).abs().max() < 5 * (0.25 / ONES.shape[axis]) ** 0.5


def test_a_mask_is_a_function_of_seed_and_batch() -> None:
    mask = dropped(ONES, 0.2, 7, batch(3))
    torch.manual_seed(5)
    assert torch.equal(mask, dropped(ONES, 0.2, 7, batch(3)))
    for other in (dropped(ONES, 0.2, 8, batch(3)), dropped(ONES, 0.2, 7, batch(4))):
        both = ((mask == 0) & (other == 0)).float().mean().item()
        assert both == pytest.approx(0.04, abs=0.01)


def test_a_share_drops_what_the_batch_drops_of_these_rows() -> None:
    whole = dropped(ONES, 0.2, 7, batch(3))
    with on_shard(20, len(ONES)):
        share = dropped(ONES[20:35], 0.2, 7, batch(3))
    assert torch.equal(share, whole[20:35])
    assert torch.equal(dropped(ONES, 0.2, 7, batch(3)), whole)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_share_drops_what_the_batch_drops_in_wrn_28_2(order: torch.memory_format) -> None:
    block, x = Block(4, 4, 1).train(), torch.ones(5, 4, 6, 6).contiguous(memory_format=order)
    whole = block._dropped(x)
    assert not torch.equal(whole[2:4], block._dropped(x[2:4]))
    with on_shard(2, 5):
        assert torch.equal(whole[2:4], block._dropped(x[2:4]))


@pytest.mark.parametrize("name", ["tv_mobilenetv2", "wrn_28_2"])
def test_no_number_is_read_back_from_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda *_: pytest.fail("draws from the running generator"))
    network = build(name, 10).to("meta").train()
    assert network(torch.empty(2, 3, 32, 32, device="meta")).logits.shape == (2, 10)


def test_a_network_drops_in_train_mode_only_and_draws_from_no_generator() -> None:
    torch.manual_seed(0)
    network = build("tv_mobilenetv2", 10)
    embedding = torch.rand(4, 1280)
    state = torch.get_rng_state()
    first = network.train().classify(embedding)
    assert torch.equal(first, network.classify(embedding))
    network(torch.rand(2, 3, 32, 32, generator=torch.Generator()))  # a batch later
    assert not torch.equal(first, network.classify(embedding))
    assert torch.equal(torch.get_rng_state(), state)
    plain = network.eval().classify(embedding)
    assert torch.equal(plain, network.classifier[1](embedding))
