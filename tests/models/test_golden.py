"""Every network of the CRD benchmark against the numbers of its reference code."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdtable.models import NETWORKS, build, canonical
from kdtable.models.network import Network

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "crd" / "models.json").read_text())
MODELS: dict[str, Any] = GOLDEN["models"]
TOLERANCE = 2e-6  # the file has 7 digits


def filled(key: str, shape: tuple[int, ...]) -> Tensor:
    """The file's ``fill_rule``."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    rng = np.random.default_rng(zlib.crc32(key.encode()) + GOLDEN["salt"])
    if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
        return torch.from_numpy(rng.uniform(0.5, 1.5, shape))
    scale = 0.1
    if len(shape) == 4:
        scale = (2 / np.prod(shape[1:])) ** 0.5
    elif len(shape) == 2:
        scale = (1 / shape[1]) ** 0.5
    return torch.from_numpy(rng.standard_normal(shape) * scale)


def reference_state(name: str) -> Network:
    network = build(name, GOLDEN["num_classes"]).double().eval()
    network.load_state_dict({key: filled(key, tuple(v.shape)) for key, v in network.state_dict().items()})
    return network


def assert_statistics(tap: Tensor, shape: list[int], expected: dict[str, float]) -> None:
    assert list(tap.shape[1:]) == shape
    std = expected["std"]
    assert abs(tap.mean().item() - expected["mean"]) <= TOLERANCE * std
    assert abs(tap.std(correction=0).item() - std) <= TOLERANCE * std
    assert abs(tap.min().item() - expected["min"]) <= TOLERANCE * max(std, abs(expected["min"]))


def test_every_network_of_the_benchmark_is_covered() -> None:
    option_a = {name for name in NETWORKS if name.endswith("_a")}
    dih = {"wide_resnet18", "wide_resnet34", "dih_vgg11", "dih_vgg11_paper", "wrn_28_2"}
    photographs = {name for name in NETWORKS if name.startswith(("tv_", "cd_", "mgd_"))} | {"mobilenetv1"}
    assert {canonical(name) for name in MODELS} == NETWORKS.keys() - option_a - dih - photographs


@pytest.mark.parametrize("name", MODELS)
def test_keys_shapes_and_size(name: str) -> None:
    network = build(name, GOLDEN["num_classes"])
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == MODELS[name]["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == MODELS[name]["params"]
    assert set(network.head) == set(MODELS[name]["not_feat_modules"])
    assert [child for child, _ in network.named_children() if child not in network.head] == MODELS[name]["feat_modules"]


@pytest.mark.parametrize("name", MODELS)
def test_numbers(name: str) -> None:
    network = reference_state(name)
    images = np.random.default_rng(GOLDEN["salt"] + 7).standard_normal(GOLDEN["input"]["shape"])
    with torch.no_grad():
        out = network(torch.from_numpy(images))

    logits = torch.tensor(MODELS[name]["logits"], dtype=torch.float64)
    assert (out.logits - logits).abs().max() <= TOLERANCE * logits.abs().max()
    post = [out.stem, *out.stages, out.embedding]
    pre = [out.stem, *out.preacts, out.embedding]
    for before, after, expected in zip(pre, post, MODELS[name]["taps"], strict=True):
        assert_statistics(before, expected["shape"], expected["pre"])
        assert_statistics(after, expected["shape"], expected["post"])
