"""Networks of torchvision's modules: equal to torchvision's own, and shown at the declared places."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import Tensor, nn

from kdtable.models import build, tv_mobilenetv2
from kdtable.models.folding import fold_batch_norms
from kdtable.models.network import Network
from kdtable.models.tracing import Tracer

OWN = {
    "tv_resnet18": torchvision.models.resnet18,
    "tv_resnet50": torchvision.models.resnet50,
    "tv_mobilenetv2": torchvision.models.mobilenet_v2,
    "tv_shufflenetv2": torchvision.models.shufflenet_v2_x1_0,
}
SMALL = [name for name in OWN if name != "tv_resnet50"]
CLASSES = 7

Pair = tuple[nn.Module, Network]


@pytest.fixture(params=OWN)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """torchvision's network and ours from one state of the generator, both without dropout."""
    monkeypatch.setattr(tv_mobilenetv2, "DROPPED", 0.0)
    torch.manual_seed(0)
    theirs = OWN[request.param](num_classes=CLASSES)
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    torch.manual_seed(0)
    return theirs, build(request.param, CLASSES)


def images(count: int = 3, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_equal_state(theirs: nn.Module, ours: nn.Module) -> None:
    one, other = theirs.state_dict(), ours.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_logits_running_statistics_and_gradients_are_torchvisions(pair: Pair) -> None:
    theirs, ours = (network.train() for network in pair)
    assert_equal_state(theirs, ours)
    expected, logits = theirs(images()), ours(images()).logits
    assert torch.equal(expected, logits)
    assert_equal_state(theirs, ours)
    expected.square().sum().backward()
    logits.square().sum().backward()
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        # ShuffleNetV2's differ in their last bits, where a ReLU stands elsewhere.
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert torch.equal(theirs.eval()(images()), ours.eval()(images()).logits)


@pytest.mark.parametrize("pair", SMALL, indirect=True)
def test_channels_last_gives_torchvisions_logits(pair: Pair) -> None:
    theirs, ours = (network.eval().to(memory_format=torch.channels_last) for network in pair)  # type: ignore[call-overload]
    x = images().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(theirs(x), ours(x).logits)


@pytest.mark.parametrize("pair", SMALL, indirect=True)
def test_torchvisions_weights_fit(pair: Pair) -> None:
    theirs, ours = pair
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.02)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(theirs.eval()(images()), ours.eval()(images()).logits)


@pytest.mark.parametrize(
    ("name", "stem", "stages"),
    [
        ("tv_resnet18", 64, [(64, 16), (128, 8), (256, 4), (512, 2)]),
        ("tv_resnet50", 64, [(256, 16), (512, 8), (1024, 4), (2048, 2)]),
        ("tv_mobilenetv2", 32, [(24, 16), (32, 8), (96, 4), (320, 2)]),
        ("tv_shufflenetv2", 24, [(24, 16), (116, 8), (232, 4), (464, 2)]),
        ("mobilenetv1", 32, [(128, 16), (256, 8), (512, 4), (1024, 2)]),
        ("mgd_mobilenetv2", 32, [(144, 8), (192, 8), (384, 4), (960, 2)]),
        ("mgd_shufflenetv2", 24, [(24, 16), (116, 8), (232, 4), (464, 2)]),
    ],
)
def test_taps_for_images_of_64_pixels(name: str, stem: int, stages: list[tuple[int, int]]) -> None:
    with torch.no_grad():
        out = build(name, CLASSES).eval()(images(1))
    assert out.stem.shape == (1, stem, 32, 32)
    assert [(x.shape[1], x.shape[2]) for x in out.stages] == stages
    assert [x.shape for x in out.preacts] == [x.shape for x in out.stages]


def test_the_small_stem_keeps_the_size_and_starts_as_the_others() -> None:
    network = build("cd_resnet50", 100).eval()
    assert network.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    with torch.no_grad():
        out = network(images(1, 32))
    assert out.stem.shape == (1, 64, 32, 32)
    assert [tuple(x.shape[1:3]) for x in out.stages] == [(256, 32), (512, 16), (1024, 8), (2048, 4)]


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("tv_resnet18", 1000, 11_689_512),
        ("tv_resnet34", 1000, 21_797_672),
        ("cd_resnet50", 100, 23_705_252),
        ("cd_resnet152", 100, 58_341_028),
        ("mobilenetv1", 1000, 4_231_976),
        ("mgd_mobilenetv2", 1000, 3_504_872),
    ],
)
def test_parameters(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        network = build(name, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("name", ["tv_shufflenetv2", "mgd_shufflenetv2"])
def test_half_of_a_shufflenets_preact_was_rectified_before(name: str) -> None:
    with torch.no_grad():
        out = build(name, CLASSES).train()(images())
    pooled, *others = out.preacts
    assert pooled is out.stages[0]
    for preact, stage in zip(others, out.stages[1:], strict=True):
        assert preact[:, 0::2].min() >= 0 > preact[:, 1::2].min()
        assert torch.equal(stage, preact.relu())


def test_mgds_mobilenet_is_torchvisions_but_for_a_stride() -> None:
    theirs, ours = torchvision.models.mobilenet_v2(), build("mgd_mobilenetv2", 1000)
    assert {key: value.shape for key, value in theirs.state_dict().items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }
    convolutions = {name: m.stride for name, m in ours.named_modules() if isinstance(m, nn.Conv2d)}
    moved = {n: s for n, s in convolutions.items() if theirs.get_submodule(n).stride != s}
    assert moved == {"features.7.conv.1.0": (1, 1), "features.11.conv.1.0": (2, 2)}


def test_a_stage_of_mgds_mobilenet_is_its_preact_cut_off_at_0_and_6() -> None:
    out = build("mgd_mobilenetv2", CLASSES).train()(images() * 100)
    for stage, preact in zip(out.stages, out.preacts, strict=True):
        assert preact.min() < 0
        assert torch.equal(stage, preact.clamp(0, 6))


@pytest.mark.parametrize("name", ["tv_mobilenetv2", "mgd_mobilenetv2", "tv_shufflenetv2"])
def test_the_convolution_behind_the_last_tap_makes_no_feature_map(name: str) -> None:
    network = build(name, CLASSES)
    trained = {id(p) for module in network.feature_modules() for p in module.parameters()}
    rest = [key for key, parameter in network.named_parameters() if id(parameter) not in trained]
    assert {key.split(".weight")[0].split(".bias")[0] for key in rest} == {
        "tv_shufflenetv2": {"conv5.0", "conv5.1", "fc"},
    }.get(name, {"features.18.0", "features.18.1", "classifier.1"})


def test_one_network_runs_in_several_threads_at_once() -> None:
    network = build("tv_resnet18", CLASSES).eval()
    batches = [images(2, 32) + shift for shift in range(4)]

    def run(x: Tensor) -> list[Tensor]:
        torch.set_num_threads(1)
        with torch.no_grad():
            out = network(x)
        return [out.logits, *out.preacts]

    alone = [run(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, batches))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_copy_runs_with_its_own_weights() -> None:
    network = build("tv_resnet18", CLASSES).eval()
    twin = copy.deepcopy(network)
    before = network(images(1, 32)).logits
    nn.init.zeros_(twin.fc.weight)
    nn.init.ones_(twin.fc.bias)
    assert twin(images(1, 32)).logits.unique().tolist() == [1]
    assert torch.equal(network(images(1, 32)).logits, before)


@pytest.mark.parametrize("work", [lambda: build("tv_resnet18", 2), lambda: fold_batch_norms(build("vgg8", 2).eval())])
def test_other_threads_run_networks_while_a_graph_is_followed(
    work: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build("resnet8", CLASSES).eval()
    expected = network(images(1, 32)).logits
    seen: list[Tensor] = []
    traced = Tracer.create_arg

    def interrupted(self: Tracer, a: object) -> object:
        if not seen:  # in the midst of it
            thread = threading.Thread(target=lambda: seen.append(network(images(1, 32)).logits))
            thread.start()
            thread.join()
        return traced(self, a)

    monkeypatch.setattr(Tracer, "create_arg", interrupted)
    work()
    assert torch.equal(seen[0], expected)
