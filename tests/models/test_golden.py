"""Every network of the CRD benchmark against the numbers of its reference code.

The file lists networks by the reference's names, so a case's name says which of ours it is.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdtable.models import NETWORKS, build, canonical
from kdtable.models.names import of_task
from kdtable.models.network import Network
from tests.golden_arrays import Arrays, fill
from tests.golden_data import OWN, checks, read

TOLERANCE = 2e-6  # the file has 7 digits


class Description(Arrays):
    """A network's numbers are in the file that lists it; the file says how they came about."""

    @property
    def file(self) -> dict[str, Any]:
        found: dict[str, Any] = read(self.entry.folder / "models.json")
        return found

    def _read(self) -> Iterator[tuple[str, Any]]:
        yield "logits", np.array(self.data["logits"])

    def _is_expected(self, name: str) -> bool:
        return True

    def _tolerance(self, largest: Tensor) -> Tensor:
        return TOLERANCE * largest


@checks("crd/models.json", arrays=Description)
def test_network(case: Description) -> None:
    shape = case.file["input"]["shape"]
    network = build(case.entry.name, case.file["num_classes"], image_size=shape[-1]).double().eval()
    check_size(case, network)
    fill(network, case.file["salt"])
    images = np.random.default_rng(case.file["salt"] + 7).standard_normal(shape)
    with torch.no_grad():
        out = network(torch.from_numpy(images))
    case.check("logits", out.logits)
    post = [out.stem, *out.stages, out.embedding]
    pre = [out.stem, *out.preacts, out.embedding]
    for before, after, expected in zip(pre, post, case.data["taps"], strict=True):
        assert_statistics(before, expected["shape"], expected["pre"])
        assert_statistics(after, expected["shape"], expected["post"])


def check_size(case: Description, network: Network) -> None:
    """Keys and shapes, sizes, and which modules make the feature maps."""
    data, state = case.data, network.state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == data["state_dict"]
    assert len(state) == data["n_state_dict"]
    assert sum(p.numel() for p in network.parameters()) == data["params"]
    assert set(network.head) == set(data["not_feat_modules"])
    assert [child for child, _ in network.named_children() if child not in network.head] == data["feat_modules"]
    assert multiply_adds(network) == (data["macs_conv"], data["macs_linear"])


def multiply_adds(network: Network) -> tuple[int, int]:
    """Of all convolutions, and of all linear layers, for one image of 3 x 32 x 32."""
    found = {nn.Conv2d: 0, nn.Linear: 0}

    def count(layer: Any, _: Any, out: Tensor) -> None:
        found[type(layer)] += out.numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if type(layer) in found]
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return found[nn.Conv2d], found[nn.Linear]


def assert_statistics(tap: Tensor, shape: list[int], expected: dict[str, float]) -> None:
    assert list(tap.shape[1:]) == shape
    std = expected["std"]
    assert abs(tap.mean().item() - expected["mean"]) <= TOLERANCE * std
    assert abs(tap.std(correction=0).item() - std) <= TOLERANCE * std
    assert abs(tap.min().item() - expected["min"]) <= TOLERANCE * max(std, abs(expected["min"]))


def test_every_network_of_the_benchmark_is_among_our_own_cases() -> None:
    option_a = {name for name in NETWORKS if name.endswith("_a")}
    dih = {"wide_resnet18", "wide_resnet34", "dih_vgg11", "dih_vgg11_paper", "wrn_28_2"}
    photographs = {name for name in NETWORKS if name.startswith(("tv_", "cd_", "mgd_"))} | {"mobilenetv1"}
    own = read(OWN / "crd" / "models.json")["models"]
    assert {canonical(name) for name in own} == set(of_task("classification")) - option_a - dih - photographs
