"""The networks of the DIH paper, and the classifiers on them, against the numbers of its repository's code.

Every model of the golden set has a name here; none is left out.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdtable.models import build, canonical
from kdtable.models.branched import Branched
from kdtable.models.heads import ConvHead, LinearHead
from kdtable.models.outputs import Outputs
from kdtable.models.tofd import SeparableBlock
from tests.golden_data import fill

GOLDEN = Path(__file__).parents[1] / "golden" / "dih"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())
SALT: int = MANIFEST["salt"]
TOLERANCE = 1e-8  # of the largest magnitude, in float64: the manifest's
TAP_DIGITS = 1e-9  # means and norms are given as floats with all their digits

MODELS = pytest.mark.parametrize("entry", MANIFEST["models"], ids=lambda entry: entry["id"])
WITH_HEADS = pytest.mark.parametrize(
    "entry", [entry for entry in MANIFEST["models"] if "dih_heads" in entry], ids=lambda entry: entry["id"]
)
MODULES = {entry["id"]: entry for entry in MANIFEST["modules"]}

Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(GOLDEN / "models.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def name_of(entry: dict[str, Any]) -> str:
    """Our name of a golden model: ``tofd_res8_c100_s32`` is ``resnet8+tofd``."""
    text = re.sub(r"_c\d+_s\d+$", "", entry["id"]).replace("_gap", "").replace("wrn28_2", "wrn_28_2")
    base = text.removeprefix("tofd_")
    # Cut as coded; the other one is tapped after its pools, and so is its twin for larger images, which has no taps.
    vgg = {"vgg11_branches": "dih_vgg11", "vgg11_plain": "dih_vgg11_paper", "vgg11_plain_wide": "dih_vgg11_paper"}
    wide = {"resnet18": "wide_resnet18", "resnet34": "wide_resnet34"}
    return canonical((vgg | wide).get(base, base) + ("+tofd" if base != text else ""))


def built(entry: dict[str, Any], name: str) -> Any:
    return build(name, entry["classes"], image_size=entry["input"][-1]).double().eval()


def images(entry: dict[str, Any]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(SALT + 7).standard_normal(entry["input"]))


def renaming(entry: dict[str, Any], name: str) -> Rename:
    """From our keys to the golden ones."""
    if "vgg" in name:  # ours count convolutions, theirs also what lies between
        keys = build(name, entry["classes"], image_size=entry["input"][-1]).state_dict()
        return dict(zip(keys, (key for key, _ in entry["state_dict"]), strict=True)).__getitem__
    if not name.endswith("+tofd"):
        return str
    return wide_tofd_key if name.startswith("wide") else tofd_key


def tofd_key(key: str) -> str:
    place, _, rest = key.removeprefix("branches.").partition(".")
    if key.startswith("branches."):
        if rest in ("weight", "bias"):  # of wrn_28_2
            return f"linear{int(place) + 1}.{rest}"
        part, _, inner = rest.partition(".")
        return f"auxiliary{int(place) + 1}.{inner}" if part == "blocks" else f"fc{int(place) + 1}.{inner}"
    return key.removeprefix("backbone.")


def wide_tofd_key(key: str) -> str:
    """TOFD's wide ResNets have their own names for a shortcut and the main classifier."""
    return tofd_key(key).replace("shortcut", "downsample").replace("linear", "fc4")


def filled(entry: dict[str, Any]) -> tuple[Any, Rename]:
    """A golden model with its weights, and how its keys are named there."""
    network, rename = built(entry, name_of(entry)), renaming(entry, name_of(entry))
    fill(network, SALT, rename)
    return network, rename


def assert_equal(value: Tensor, expected: Tensor, name: str) -> None:
    gap = (value - expected).abs().max()
    assert gap <= TOLERANCE * expected.abs().max(), f"{name}: off by {gap:.3g}"


def probe(tap: Tensor) -> Tensor:
    flat = tap.flatten()
    return flat[torch.from_numpy(np.floor(np.linspace(0, len(flat) - 1, min(48, len(flat)))).astype(int))]


def assert_taps(out: Outputs, entry: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    for number, (tap, expected) in enumerate(zip(out.stages, entry["taps"], strict=True), 1):
        assert list(tap.shape) == expected["shape"]
        assert tap.mean().item() == pytest.approx(expected["mean"], rel=TAP_DIGITS)
        assert tap.norm().item() == pytest.approx(expected["l2"], rel=TAP_DIGITS)
        assert_equal(probe(tap), arrays[f"{entry['id']}__tap{number}_probe"], f"tap {number}")


def classifiers(network: Any, out: Outputs) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and features of a TOFD network as its code lists them, deepest first."""
    deepest_first = out.branches[::-1]
    features = [embedding for _, embedding in deepest_first]
    if len(out.branches) < len(out.stages):
        assert out.embedding is not None
        features.insert(0, out.embedding)
    return [out.logits, *(logits for logits, _ in deepest_first)], features


@MODELS
def test_keys_shapes_and_size(entry: dict[str, Any]) -> None:
    network, rename = filled(entry)
    ours = {rename(key): list(value.shape) for key, value in network.state_dict().items()}
    theirs = dict(entry["state_dict"])
    # a key that is a second name of a tensor is none of ours
    assert ours == {key: shape for key, shape in theirs.items() if key not in entry.get("aliases", {})}
    assert len(ours) == len(network.state_dict())
    assert sum(p.numel() for p in network.parameters()) == entry["params"]


@MODELS
def test_numbers(entry: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    network, _ = filled(entry)
    with torch.no_grad():
        out = network(images(entry))
    if isinstance(network, Branched):
        logits, features = classifiers(network, out)
        assert_equal(torch.stack(logits), arrays[f"{entry['id']}__logits"], "logits")
        assert_equal(torch.stack(features), arrays[f"{entry['id']}__features"], "features")
    else:
        assert_equal(out.logits, arrays[f"{entry['id']}__logits"], "logits")
    if entry["taps"]:
        assert_taps(out, entry, arrays)


@WITH_HEADS
def test_heads(entry: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    plain, _ = filled(entry)
    network = built(entry, name_of(entry) + "+heads")
    network.backbone.load_state_dict(plain.state_dict())
    expected = entry["dih_heads"]
    assert [p.numel() for p in network.branches.parameters()] == [
        size for count in expected["params"] for size in (count - entry["classes"], entry["classes"])
    ]
    for head, salt in zip(network.branches, expected["salts"], strict=True):
        fill(head, salt)
    with torch.no_grad():
        out = network(images(entry))
    assert [embedding.shape[1] for _, embedding in out.branches] == expected["in_features"]
    for (_, embedding), tap in zip(out.branches, out.stages, strict=True):
        assert torch.equal(embedding, tap.flatten(1))
    logits = torch.stack([logits for logits, _ in out.branches])
    assert_equal(logits, arrays[f"{entry['id']}__dih_head_logits"], "heads")
    assert_equal(out.logits, arrays[f"{entry['id']}__logits"], "logits")


def module(entry: dict[str, Any]) -> nn.Module:
    _, channels, height, width = entry["input_shape"]
    if entry["kind"] == "DIH head":
        return LinearHead(channels * height * width, entry["classes"])
    if entry["kind"] == "MHKD head":
        return ConvHead(channels, height, entry["classes"])
    return SeparableBlock(channels, entry["out_channels"])


def golden_module(name: str) -> tuple[nn.Module, Tensor]:
    """A module with its weights and its input."""
    entry = MODULES[name]
    network = module(entry).double()
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == entry["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == entry["params"]
    fill(network, SALT)
    x = np.random.default_rng(entry["input_seed"]).standard_normal(entry["input_shape"])
    return network, torch.from_numpy(x)


@pytest.mark.parametrize("name", [name for name in MODULES if "dih" in name])
def test_a_linear_head_alone(name: str, arrays: dict[str, Tensor]) -> None:
    head, x = golden_module(name)
    assert_equal(head(x)[0], arrays[f"{name}__out"], name)


@pytest.mark.parametrize("name", [name for name in MODULES if "dih" not in name])
def test_a_module_with_batch_norms_alone(name: str, arrays: dict[str, Tensor]) -> None:
    network, x = golden_module(name)
    assert_equal(network.eval()(x), arrays[f"{name}__out_eval"], "eval mode")
    assert_equal(network.train()(x), arrays[f"{name}__out_train"], "train mode")
    after = {key.removeprefix(f"{name}__"): value for key, value in arrays.items() if key.endswith("_after")}
    state = network.state_dict()
    for key in [key for key in after if key.startswith("bn")]:
        layer, _, buffer = re.sub("_after$", "", key).partition("_running_")
        assert_equal(state[f"{layer}.running_{buffer}"], after[key], key)


def test_where_a_convolutional_head_is_padded() -> None:
    padded = {entry["input_shape"][2]: entry["first_conv_padding"] for name, entry in MODULES.items() if "mhkd" in name}
    assert padded == {size: ConvHead(8, size, 10).conv_1.padding[0] for size in padded} == {9: 0, 4: 1}
