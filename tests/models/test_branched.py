"""Networks with extra classifiers: nothing of the network itself changes."""

import pytest
import torch
from torch import Tensor

from kdtable.methods.parts.adaptors import feature_modules
from kdtable.models import build
from kdtable.models.heads import ConvHead
from kdtable.models.network import Network

NAMES = ["resnet8+heads", "resnet8+tofd", "resnet20_a+tofd", "wide_resnet18+tofd", "wrn_28_2+heads", "dih_vgg11+heads"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def seeded(name: str, seed: int = 0, **options: object) -> Network:
    torch.manual_seed(seed)
    return build(name, 10, **options)


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*NAMES, "wrn_28_2+tofd"])
def test_the_backbone_starts_as_the_network_alone(name: str) -> None:
    plain, branched = seeded(name.partition("+")[0]).state_dict(), seeded(name).state_dict()
    ours = {key.removeprefix("backbone."): value for key, value in branched.items() if key.startswith("backbone.")}
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[key], plain[key]) for key in plain)
    assert {key.partition(".")[0] for key in branched} == {"backbone", "branches"}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_branches_change_nothing_of_the_network(name: str, mode: str) -> None:
    plain = seeded(name.partition("+")[0], mean=MEAN, std=STD).train(mode == "train")
    branched = seeded(name, mean=MEAN, std=STD).train(mode == "train")
    alone, out = plain(images()), branched(images())
    assert torch.equal(out.logits, alone.logits)
    assert torch.equal(out.stem, alone.stem)
    assert torch.equal(out.embedding, alone.embedding)
    pairs = zip((*out.stages, *out.preacts), (*alone.stages, *alone.preacts), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_normalised_once(name: str) -> None:
    plain, normalising = seeded(name).eval(), seeded(name, mean=MEAN, std=STD).eval()
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    by_hand, out = plain((images() - mean) / std), normalising(images())
    for (one, _), (other, _) in zip(out.branches, by_hand.branches, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_heads_read_the_stages_from_shallow_to_deep() -> None:
    network = seeded("resnet8+heads").eval()
    out = network(images())
    for head, stage, (logits, embedding) in zip(network.branches, out.stages, out.branches, strict=True):
        assert torch.equal(embedding, stage.flatten(1))
        assert torch.equal(logits, head(stage)[0])


def test_a_16_32_64_network_has_a_branch_on_its_own_embedding() -> None:
    out = seeded("resnet8+tofd").eval()(images())
    assert [embedding.shape for _, embedding in out.branches] == [(2, 64)] * 3
    logits, embedding = out.branches[-1]
    assert torch.equal(embedding, out.embedding)
    assert not torch.allclose(logits, out.logits)
    assert not any(torch.allclose(embedding, other) for _, other in out.branches[:-1])


@pytest.mark.parametrize(("name", "count"), [("wide_resnet18+tofd", 3), ("wrn_28_2+tofd", 2)])
def test_of_other_networks_the_own_classifier_is_the_deepest(name: str, count: int) -> None:
    out = seeded(name).eval()(images())
    assert len(out.branches) == count == len(out.stages) - 1


@pytest.mark.parametrize("name", ["resnet8+heads", "resnet8+tofd", "wrn_28_2+tofd"])
def test_every_branch_learns_from_its_own_logits(name: str) -> None:
    network = seeded(name)
    for place, (logits, _) in enumerate(network(images()).branches):
        network.zero_grad(set_to_none=True)
        logits.square().sum().backward(retain_graph=True)
        reached = [any(p.grad is not None for p in branch.parameters()) for branch in network.branches]
        assert reached == [number == place for number in range(len(network.branches))]


def test_classifiers_that_are_the_networks_own_layers_move_their_statistics_each_time() -> None:
    network = seeded("wrn_28_2+tofd")
    network(images())
    counts = {key: value.item() for key, value in network.backbone.state_dict().items() if key.endswith("tracked")}
    expected = {"layer1": 1, "layer2": 2, "layer3": 3, "bn1": 3}
    assert counts == {key: expected[key.partition(".")[0]] for key in counts}


def test_and_only_chance_and_statistics_tell_them_apart() -> None:
    network = seeded("wrn_28_2+tofd").double()
    x = images().double()
    trained = network(x)
    assert not any(torch.allclose(embedding, trained.embedding) for _, embedding in trained.branches)
    out = network.eval()(x)
    for _, embedding in out.branches:
        torch.testing.assert_close(embedding, out.embedding, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet8+heads", "wrn_28_2+tofd"])
def test_what_makes_the_maps_is_the_backbones(name: str) -> None:
    network = seeded(name)
    assert feature_modules(network) == feature_modules(network.backbone) != []


def test_heads_are_as_large_as_the_images_ask() -> None:
    sizes = {32: [16384, 8192, 4096], 64: [65536, 32768, 16384]}
    for size, features in sizes.items():
        heads = seeded("resnet8+heads", image_size=size).branches
        assert [head.added_linear.in_features for head in heads] == features


def test_making_heads_draws_nothing_but_their_start() -> None:
    torch.manual_seed(0)
    build("resnet8", 10)
    for features in (16384, 8192, 4096):
        torch.nn.Linear(features, 10)
    expected = torch.get_rng_state()
    seeded("resnet8+heads")
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("size", [3, 4, 5, 9])
def test_a_convolutional_head_takes_small_maps(size: int) -> None:
    assert ConvHead(8, size, 7).eval()(torch.rand(2, 8, size, size)).shape == (2, 7)
