"""Networks of timm and torchvision: the library's own, with their feature maps picked up in one pass."""

import copy
import pickle
import subprocess
import sys
from importlib.util import find_spec
from unittest.mock import ANY

import pytest
import torch
from torch import Tensor, nn

from kdtable import models
from kdtable.errors import BadRequest
from kdtable.models import foreign
from kdtable.models.folding import fold_batch_norms
from kdtable.models.foreign import split_names
from kdtable.models.network import Hold, Network
from kdtable.models.outputs import EVERYTHING, Outputs
from kdtable.models.torchvision_network import last_of_each

HAS_TIMM = find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")

#: Each kind of network: residual, inverted residual with activations inside batch norms, transformer.
OF_TIMM = ("test_resnet", "test_efficientnet", "test_vit")
OF_TORCHVISION = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")
NAMES = [
    *(pytest.param(f"timm:{name}", marks=needs_timm) for name in OF_TIMM),
    *(f"torchvision:{name}" for name in OF_TORCHVISION),
]


def built(name: str, classes: int = 5, size: int = 32) -> Network:
    torch.manual_seed(0)
    return models.build(name, classes, image_size=size)


def original(name: str, classes: int = 5, size: int = 32) -> nn.Module:
    library, _, own = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        from torchvision.models import get_model

        found: nn.Module = get_model(own, num_classes=classes)
        return found
    import timm

    fixed = timm.get_pretrained_cfg(own).fixed_input_size
    return timm.create_model(own, num_classes=classes, **({"img_size": size} if fixed else {}))


def without_randomness(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # type: ignore[assignment]
    return network


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_weights_keys_and_logits_are_the_librarys(name: str, training: bool) -> None:
    ours, theirs = built(name).train(training), without_randomness(original(name)).train(training)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    images = torch.rand(4, 3, 32, 32)
    outputs = ours(images)
    assert torch.equal(outputs.logits, theirs(images))
    assert torch.equal(outputs.logits, ours.classify(outputs.embedding))
    assert torch.equal(outputs.logits, ours.linear_classifier()(outputs.embedding))
    # the statistics of batch norms moved once
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_training_leaves_the_global_generator_alone(name: str) -> None:
    network, images = built(name).train(), torch.rand(4, 3, 32, 32)
    before = torch.get_rng_state()
    network(images).logits.sum().backward()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_it_runs_alone(name: str) -> None:
    network, images = built(name).eval(), torch.rand(2, 3, 32, 32)
    expected = network(images)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    for one in (copied, pickle.loads(pickle.dumps(copied))):
        found = one(images)
        assert torch.equal(found.logits, expected.logits)
        assert len(found.stages) == len(expected.stages)


@pytest.mark.parametrize("name", NAMES)
def test_maps_keep_their_values(name: str) -> None:
    """What is picked up is not overwritten later in the pass."""
    network, images, copies = built(name).train(), torch.rand(4, 3, 32, 32), Copies()
    built(name).train().embed(images, copies)
    whole = network(images)
    assert all(map(torch.equal, whole.stages, copies.stages))
    assert all(map(torch.equal, whole.preacts, copies.preacts))
    assert len(whole.stages) == len(whole.preacts)
    assert [s.shape for s in whole.stages] == [p.shape for p in whole.preacts]
    if whole.last is not None:
        torch.testing.assert_close(whole.last.mean((2, 3)), whole.embedding)
    assert network(images, frozenset()) == Outputs(ANY)


class Copies(Hold):
    """Copies maps when they are made."""

    def __init__(self) -> None:
        super().__init__(frozenset())
        self.stages: list[Tensor] = []
        self.preacts: list[Tensor] = []

    def stage(self, x: Tensor) -> None:
        self.stages.append(x.clone())

    def preact(self, x: Tensor) -> None:
        self.preacts.append(x.clone())


def shapes(outputs: Outputs) -> list[tuple[int, ...]]:
    return [tuple(stage.shape[1:]) for stage in outputs.stages]


def test_torchvisions_resnet18_has_the_maps_of_ours() -> None:
    """``tv_resnet18`` declares the same places by hand."""
    images = torch.rand(4, 3, 32, 32)
    torch.manual_seed(0)
    ours = models.build("tv_resnet18", 5).train()(images)
    theirs = built("torchvision:resnet18").train()(images)
    names = sorted(EVERYTHING - {"branches"})
    for name in names:
        for a, b in zip(_all(getattr(ours, name)), _all(getattr(theirs, name)), strict=True):
            assert torch.equal(a, b), name


def _all(value: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


@needs_timm
def test_timms_resnet18_has_the_maps_of_its_own_extractor() -> None:
    import timm

    images = torch.rand(2, 3, 64, 64)
    network = built("timm:resnet18", 5).eval()
    torch.manual_seed(0)
    extractor = timm.create_model("resnet18", num_classes=5, features_only=True).eval()
    extractor.load_state_dict(network.state_dict(), strict=False)
    outputs = network(images)
    for ours, theirs in zip((outputs.stem, *outputs.stages), extractor(images), strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_timm
def test_channels_come_first() -> None:
    assert shapes(built("timm:swin_tiny_patch4_window7_224")(torch.rand(2, 3, 32, 32))) == [
        (96, 8, 8),
        (192, 4, 4),
        (384, 2, 2),
        (768, 1, 1),
    ]


@needs_timm
def test_a_transformer_takes_the_size_of_the_images_and_shows_no_maps() -> None:
    outputs = built("timm:test_vit", size=48)(torch.rand(2, 3, 48, 48))
    assert (outputs.stem, outputs.stages, outputs.preacts, outputs.last) == (None, (), (), None)
    assert outputs.embedding is not None
    assert outputs.embedding.shape == (2, 64)


def test_levels_do_not_depend_on_the_images() -> None:
    found = [
        len(built("torchvision:mobilenet_v3_small", size=size)(torch.rand(2, 3, size, size)).stages)
        for size in (32, 64)
    ]
    assert found == [4, 4]


def test_the_last_map_of_each_stride() -> None:
    maps = {"a": (8, 111, 111), "b": (8, 109, 109), "c": (16, 56, 56), "tokens": (28, 28, 32), "flat": (9, 1, 1)}
    levels = last_of_each(maps)
    assert [(level.module, level.stem, level.channels_last) for level in levels] == [
        ("b", True, False),
        ("c", False, False),
        ("tokens", False, True),
    ]
    assert last_of_each({"patches": (768, 14, 14)}) == ()


def test_the_first_network_of_a_process_starts_as_the_second() -> None:
    """Finding the levels builds a network once in a process, which moves no generator."""
    code = (
        "import torch; from kdtable import models\n"
        "def start():\n"
        "    torch.manual_seed(0)\n"
        "    return models.build('torchvision:resnet18', 3).linear_classifier().weight\n"
        "assert torch.equal(start(), start())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_batch_norms_are_not_folded() -> None:
    assert fold_batch_norms(built("torchvision:resnet18").eval()) == 0


@needs_timm
def test_heads_start_behind_the_same_backbone() -> None:
    branched, plain = built("timm:test_resnet+heads"), built("timm:test_resnet")
    outputs = branched.eval()(torch.rand(2, 3, 32, 32))
    assert len(outputs.branches) == len(outputs.stages) == 4
    assert all(torch.equal(branched.state_dict()[f"backbone.{k}"], v) for k, v in plain.state_dict().items())


def test_float64_and_normalisation() -> None:
    network = built("torchvision:resnet18").double().eval()
    network.normalise_inputs((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert "input_mean" not in network.state_dict()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    expected = without_randomness(original("torchvision:resnet18")).double().eval()((images - mean) / std)
    torch.testing.assert_close(network(images).logits, expected)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("resnet56:resnet20", ["resnet56", "resnet20"]),
        ("timm:resnet18:resnet8", ["timm:resnet18", "resnet8"]),
        ("resnet14:timm:resnet10t", ["resnet14", "timm:resnet10t"]),
        ("timm:a:torchvision:b", ["timm:a", "torchvision:b"]),
        ("timm:a+timm:b:resnet8", ["timm:a+timm:b", "resnet8"]),
        ("resnet8", ["resnet8"]),
        ("timm:a", ["timm:a"]),
        ("a:b:c", ["a", "b", "c"]),
    ],
)
def test_a_pair_is_split_behind_names_only(text: str, names: list[str]) -> None:
    assert split_names(text) == names


def test_spelling() -> None:
    assert models.canonical(" TIMM:resnet18.a1_in1k ") == "timm:resnet18.a1_in1k"
    assert models.canonical("torchvision:resnet18+HEADS") == "torchvision:resnet18+heads"
    assert models.base_name("timm:resnet18+heads") == "timm:resnet18"
    assert models.version("timm:resnet18") == 1
    assert models.version("timm:resnet18+heads") == 2


def test_reading_a_name_imports_nothing() -> None:
    code = (
        "import sys, kdtable.models as m\n"
        "assert m.checked('torchvision:resnet18') == 'torchvision:resnet18'\n"
        "assert not {'torch', 'timm', 'torchvision'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_are_those_of_the_library() -> None:
    from torchvision import models as theirs

    assert set(foreign.registered("torchvision")) == set(theirs.list_models(module=theirs))
    if HAS_TIMM:
        import timm

        assert set(foreign.registered("timm")) == set(timm.list_models())
    assert foreign.registered("unheard-of") == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet19", r"unknown network of torchvision 'resnet19'; did you mean .*resnet1"),
        ("torchvision:", "is no name of torchvision's: write torchvision:resnet18"),
        ("torchvision:a b", "is no name of torchvision's"),
        ("torchvision:resnet18.V9", r"unknown weights of torchvision:resnet18 'resnet18.V9'"),
        ("torchvision:resnet18+tofd", "cannot have the classifiers 'tofd'"),
        pytest.param("timm:resnet8", "unknown network of timm 'resnet8'; did you mean resnet18", marks=needs_timm),
    ],
)
def test_a_name_that_the_library_lacks(name: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        models.checked(name)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"networks of timm need .*: pip install 'kdtable\[timm\]'"):
        models.checked("timm:resnet18")


def test_a_network_without_a_linear_classifier() -> None:
    with pytest.raises(BadRequest, match="torchvision:squeezenet1_1 cannot be used: what makes its logits is not one"):
        built("torchvision:squeezenet1_1")


def test_a_size_that_a_transformer_cannot_take() -> None:
    with pytest.raises(BadRequest, match="torchvision:vit_b_16 cannot be built for images of 30 x 30 pixels"):
        built("torchvision:vit_b_16", size=30)


def test_their_own_normalisation() -> None:
    assert foreign.own_normalisation("torchvision:resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert foreign.own_normalisation("resnet8") is None
    if HAS_TIMM:
        assert foreign.own_normalisation("timm:vit_tiny_patch16_224") == ((0.5,) * 3, (0.5,) * 3)
