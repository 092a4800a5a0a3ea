"""What holds for every network: what is kept, input normalisation, batch statistics, initialisation."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from kdtable.models import NETWORKS, build
from kdtable.models.names import of_task
from kdtable.models.network import Network
from kdtable.models.outputs import EVERYTHING, Outputs

EMPTY: frozenset[str] = frozenset()
BRANCHED = [
    "resnet8+heads",
    "resnet8+tofd",
    "resnet20_a+tofd",
    "wide_resnet18+tofd",
    "wrn_28_2+tofd",
    "dih_vgg11+heads",
]
#: Of the same code as a smaller one, and too large for what is asked of all.
LARGE = {f"tv_resnet{depth}" for depth in (34, 50, 101, 152)} | {"cd_resnet50", "cd_resnet152", "mgd_shufflenetv2"}
PLAIN = [name for name in of_task("classification") if name not in LARGE]
EVERY = [*PLAIN, *BRANCHED]
#: Networks whose stages do not end with a ReLU over all channels.
UNRECTIFIED = {"MobileNetV2", "ShuffleV2", "tv_mobilenetv2", "mgd_mobilenetv2"}


def smallest(name: str) -> int:
    """Pixels that are enough for a network: five pools need more."""
    return 32 if name.startswith("dih_vgg11") else 16


def seeded(name: str, num_classes: int = 10, size: int | None = None) -> Network:
    torch.manual_seed(0)
    return build(name, num_classes, image_size=size or smallest(name))


#: Networks whose embedding is no spatial mean, or whose graph declares no last map.
WITHOUT_LAST = ("dih_vgg11", "tv_mobilenetv2", "tv_shufflenetv2", "mgd_")


def images(count: int = 2, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def images_for(name: str) -> Tensor:
    return images(size=smallest(name))


def held(out: Outputs) -> Iterator[Tensor]:
    yield from (x for x in (out.stem, out.embedding, out.last) if x is not None)
    yield from (*out.stages, *out.preacts)
    yield from flat(out.branches)


def flat(branches: tuple[tuple[Tensor, Tensor], ...]) -> list[Tensor]:
    return [tensor for branch in branches for tensor in branch]


def trained_step(network: Network, x: Tensor, keep: frozenset[str]) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    """Logits, gradients and buffers of one forward and backward pass in train mode."""
    network = copy.deepcopy(network).train()
    logits = network(x, keep=keep).logits
    logits.square().sum().backward()
    return logits, [p.grad for p in network.parameters()], list(network.buffers())


@pytest.mark.parametrize("name", EVERY)
def test_keep_never_changes_the_computation(name: str) -> None:
    network, x = seeded(name), images_for(name)
    logits, gradients, buffers = trained_step(network, x, EVERYTHING)
    if name in NETWORKS:
        assert not any(gradient is None for gradient in gradients)
    for keep in (EMPTY, frozenset({"preacts"}), frozenset({"branches"}), frozenset({"stem", "stages", "embedding"})):
        other_logits, other_gradients, other_buffers = trained_step(network, x, keep)
        assert torch.equal(logits, other_logits)
        for one, other in zip((*gradients, *buffers), (*other_gradients, *other_buffers), strict=True):
            if one is None or other is None:  # of a branch: only the main logits were asked to move
                assert one is other
            else:
                assert torch.equal(one, other)


@pytest.mark.parametrize("name", EVERY)
def test_only_what_is_asked_for_is_kept(name: str) -> None:
    network, x = seeded(name).eval(), images_for(name)
    with torch.no_grad():
        full = network(x)
        assert len(full.stages) == len(full.preacts) >= 3
        assert bool(full.branches) == (name in BRANCHED)
        for kind in sorted(EVERYTHING):
            out = network(x, keep=frozenset({kind}))
            wanted = flat(full.branches) if kind == "branches" else getattr(full, kind)
            expected = [wanted] if isinstance(wanted, Tensor) else list(wanted or ())
            assert len(list(held(out))) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(held(out), expected, strict=True))
        assert list(held(network(x, keep=EMPTY))) == []


@pytest.mark.parametrize("name", EVERY)
def test_the_classifier_reads_the_mean_of_the_last_map(name: str) -> None:
    network, x = seeded(name).eval(), images_for(name)
    with torch.no_grad():
        out = network(x)
        assert out.embedding is not None
        assert (out.last is None) == name.startswith(WITHOUT_LAST), "which networks have one"
        if out.last is not None:
            torch.testing.assert_close(out.last.mean(dim=(2, 3)), out.embedding)
        torch.testing.assert_close(network.linear_classifier()(out.embedding), out.logits)


def test_keeping_something_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot keep \['maps'\]"):
        seeded("resnet8")(images(), keep=frozenset({"maps"}))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", EVERY)
def test_what_was_kept_is_not_changed_in_place(name: str, mode: str) -> None:
    network = seeded(name).train(mode == "train")
    assert all(x._version == 0 for x in held(network(images_for(name))))


def test_a_change_in_place_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.functional, "relu", torch.relu_)
    out = seeded("resnet8").eval()(images())
    assert any(x._version > 0 for x in out.preacts)


@pytest.mark.parametrize("name", EVERY)
def test_the_classifier_sees_the_embedding(name: str) -> None:
    network = seeded(name).eval()
    out = network(images_for(name))
    assert torch.equal(network.classify(out.embedding), out.logits)


@pytest.mark.parametrize("name", [n for n in PLAIN if n not in UNRECTIFIED and n[:3] != "wrn"])
def test_a_stage_is_its_rectified_preact(name: str) -> None:
    out = seeded(name)(images_for(name))
    assert all(torch.equal(stage, preact.relu()) for stage, preact in zip(out.stages, out.preacts, strict=True))


def test_a_shufflenet_v2_stage_is_its_rectified_and_shuffled_preact() -> None:
    out = seeded("ShuffleV2")(images())
    for stage, preact in zip(out.stages, out.preacts, strict=True):
        left, right = preact.chunk(2, dim=1)
        assert left.min() >= 0 > right.min()
        assert torch.equal(stage[:, 0::2], left)
        assert torch.equal(stage[:, 1::2], right.relu())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("size", [32, 40, 64])
def test_other_image_sizes(name: str, size: int) -> None:
    network = seeded(name, 7, size).eval()
    with torch.no_grad():
        assert network(images(1, size), keep=EMPTY).logits.shape == (1, 7)


def test_vgg_pools_once_more_for_64_pixels() -> None:
    network = seeded("vgg8").eval()
    with torch.no_grad():
        assert [x.shape[-1] for x in network(images(1, 32)).stages] == [16, 8, 4, 4]
        assert [x.shape[-1] for x in network(images(1, 64)).stages] == [32, 16, 8, 4]


@pytest.mark.parametrize("name", [name for name in EVERY if name != "wrn_28_2+tofd"])
def test_a_pass_in_train_mode_updates_every_statistic_once(name: str) -> None:
    network = seeded(name).train()
    network(images_for(name))
    counts = [b.item() for key, b in network.named_buffers() if key.endswith("num_batches_tracked")]
    assert counts == [1] * sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_a_wide_resnets_preact_is_what_the_next_block_works_on() -> None:
    network = seeded("wrn_16_1").train()
    seen: list[Tensor] = []
    for bn in (network.block2.layer[0].bn1, network.block3.layer[0].bn1, network.bn1):
        bn.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    out = network(images())
    assert len(seen) == 3
    assert all(preact is output for preact, output in zip(out.preacts, seen, strict=True))


class TestNormalisation:
    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equals_normalising_by_hand(self, dtype: torch.dtype) -> None:
        plain = seeded("resnet8").eval()
        network = build("resnet8", 10, mean=self.MEAN, std=self.STD).eval()
        network.load_state_dict(plain.state_dict())
        plain, network, x = plain.to(dtype), network.to(dtype), images().to(dtype)
        by_hand = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate(zip(self.MEAN, self.STD, strict=True))], 1)
        torch.testing.assert_close(network(x).logits, plain(by_hand).logits, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(network(x).logits, plain(x).logits)

    def test_adds_no_keys(self) -> None:
        network = build("resnet8", 10, mean=self.MEAN, std=self.STD)
        assert network.state_dict().keys() == build("resnet8", 10).state_dict().keys()

    def test_follows_the_network(self) -> None:
        network = copy.deepcopy(build("resnet8", 10, mean=self.MEAN, std=self.STD)).double()
        assert network.input_mean is not None
        assert network.input_mean.dtype == torch.float64
        assert network.to("meta").input_mean.device.type == "meta"

    def test_does_not_change_the_images(self) -> None:
        x = images()
        build("resnet8", 10, mean=self.MEAN, std=self.STD)(x)
        assert torch.equal(x, images())

    def test_mean_and_std_come_together(self) -> None:
        with pytest.raises(ValueError, match="together"):
            build("resnet8", 10, mean=self.MEAN)
        with pytest.raises(ValueError, match="together"):
            build("resnet8", 10, std=self.STD)

    def test_mean_and_std_fit(self) -> None:
        with pytest.raises(ValueError, match="3 channels"):
            build("resnet8", 10, mean=self.MEAN, std=(1.0,))
        with pytest.raises(ValueError, match="positive"):
            build("resnet8", 10, mean=self.MEAN, std=(1.0, 0.0, 1.0))


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        build("resnet8", 0)
