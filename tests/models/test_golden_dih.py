"""The networks of the DIH paper, and the classifiers on them, against the numbers of its repository's code."""

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdtable.models.branched import Branched
from kdtable.models.heads import ConvHead, LinearHead
from kdtable.models.outputs import Outputs
from kdtable.models.tofd import SeparableBlock
from tests.golden_arrays import Shared, fill
from tests.golden_data import checks, manifest
from tests.models.golden_dih import built, filled, name_of

TAP_DIGITS = 1e-9  # means and norms are given as floats with all their digits

models = partial(checks, "dih/models", arrays=Shared)
modules = partial(checks, "dih/modules", arrays=Shared)


def salt_of(case: Shared) -> int:
    salt: int = manifest(case.entry.folder)["salt"]
    return salt


@models()
def test_network(case: Shared) -> None:
    entry = case.data
    network, rename = filled(entry, salt_of(case))
    check_keys(entry, {rename(key): list(value.shape) for key, value in network.state_dict().items()})
    images = torch.from_numpy(np.random.default_rng(salt_of(case) + 7).standard_normal(entry["input"]))
    with torch.no_grad():
        out = network(images)
    if isinstance(network, Branched):
        logits, features = classifiers(out)
        case.check("logits", torch.stack(logits))
        case.check("features", torch.stack(features))
    else:
        case.check("logits", out.logits)
    if entry["taps"]:
        check_taps(case, out)
    if "dih_heads" in entry:
        check_heads(case, network, images)


def check_keys(entry: Any, ours: dict[str, list[int]]) -> None:
    theirs = dict(entry["state_dict"])
    # A key that is a second name of a tensor is none of ours.
    assert ours == {key: shape for key, shape in theirs.items() if key not in entry.get("aliases", {})}


def check_taps(case: Shared, out: Outputs) -> None:
    for number, (tap, expected) in enumerate(zip(out.stages, case.data["taps"], strict=True), 1):
        assert list(tap.shape) == expected["shape"]
        assert tap.mean().item() == pytest.approx(expected["mean"], rel=TAP_DIGITS, abs=0)
        assert tap.norm().item() == pytest.approx(expected["l2"], rel=TAP_DIGITS, abs=0)
        case.check(f"tap{number}_probe", probe(tap))


def probe(tap: Tensor) -> Tensor:
    flat = tap.flatten()
    return flat[torch.from_numpy(np.floor(np.linspace(0, len(flat) - 1, min(48, len(flat)))).astype(int))]


def classifiers(out: Outputs) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and features of a TOFD network as its code lists them, deepest first."""
    deepest_first = out.branches[::-1]
    features = [embedding for _, embedding in deepest_first]
    if len(out.branches) < len(out.stages):
        assert out.embedding is not None
        features.insert(0, out.embedding)
    return [out.logits, *(logits for logits, _ in deepest_first)], features


def check_heads(case: Shared, plain: nn.Module, images: Tensor) -> None:
    """The linear heads of DIH on every tap, and that they change nothing."""
    entry, expected = case.data, case.data["dih_heads"]
    network = built(entry, name_of(entry) + "+heads")
    network.backbone.load_state_dict(plain.state_dict())
    sizes = [sum(p.numel() for p in head.parameters()) for head in network.branches]
    assert (len(sizes), sizes) == (expected["num"], expected["params"])
    for head, salt in zip(network.branches, expected["salts"], strict=True):
        fill(head, salt)
    with torch.no_grad():
        out = network(images)
    assert [embedding.shape[1] for _, embedding in out.branches] == expected["in_features"]
    for (_, embedding), tap in zip(out.branches, out.stages, strict=True):
        assert torch.equal(embedding, tap.flatten(1))
    case.check("dih_head_logits", torch.stack([logits for logits, _ in out.branches]))
    case.check("logits", out.logits)


def golden_module(case: Shared, network: nn.Module) -> Tensor:
    """Give a module its weights; its input."""
    entry = case.data
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == entry["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == entry["params"]
    fill(network.double(), salt_of(case))
    return torch.from_numpy(np.random.default_rng(entry["input_seed"]).standard_normal(entry["input_shape"]))


@modules("DIH head")
def test_a_linear_head_alone(case: Shared) -> None:
    _, channels, height, width = case.data["input_shape"]
    head = LinearHead(channels * height * width, case.data["classes"])
    case.check("out", head(golden_module(case, head))[0])


@modules("MHKD head")
def test_a_convolutional_head_alone(case: Shared) -> None:
    """With the padding of the case: the reference is told it."""
    _, channels, height, _ = case.data["input_shape"]
    head = ConvHead(channels, height, case.data["classes"])
    head.conv_1.padding = (case.data["first_conv_padding"],) * 2
    check_in_both_modes(case, head)


@modules("TOFD separable-conv block")
def test_a_separable_block_alone(case: Shared) -> None:
    check_in_both_modes(case, SeparableBlock(case.data["in_channels"], case.data["out_channels"]))


def check_in_both_modes(case: Shared, network: nn.Module) -> None:
    """The outputs, and statistics after one pass in train mode."""
    x = golden_module(case, network)
    case.check("out_eval", network.eval()(x))
    case.check("out_train", network.train()(x))
    state = network.state_dict()
    for name in (name for name in case.names() if name.endswith("_after")):
        layer, _, statistic = re.sub("_after$", "", name).partition("_running_")
        case.check(name, state[f"{layer}.running_{statistic}"])


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (4, 1), (5, 0), (9, 0), (32, 0)])
def test_where_a_convolutional_head_is_padded(size: int, padding: int) -> None:
    """Only where both convolutions could not be applied."""
    assert ConvHead(8, size, 10).conv_1.padding == (padding, padding)
