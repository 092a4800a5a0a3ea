"""Which of our networks a model of the DIH paper's golden set is, and how its code names that network's weights."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import torch

from kdtable.models import build
from tests.golden_arrays import fill

Rename = Callable[[str], str]

_DEPTHS: Final = (8, 14, 20, 32, 44, 56, 110)
#: Ours by the first words of the set's ``family``. Of one family they differ in size, which tells them apart.
FAMILIES: Final = {
    "plain CIFAR resnet": tuple(f"resnet{depth}" for depth in _DEPTHS),
    "wide": ("wide_resnet18", "wide_resnet34"),
    # Cut as coded; the other one is tapped after its pools, and so is its twin for larger images, which has no taps.
    "VGG-11-BN cut in four": ("dih_vgg11",),
    "VGG-11-BN, one stack": ("dih_vgg11_paper",),
    "WR-28-2": ("wrn_28_2",),
    "TOFD CIFAR resnet": tuple(f"resnet{depth}+tofd" for depth in _DEPTHS),
    "TOFD wide": ("wide_resnet18+tofd", "wide_resnet34+tofd"),
    "TOFD WR-28-2": ("wrn_28_2+tofd",),
}


def name_of(entry: Mapping[str, Any]) -> str:
    """Our name of a golden model."""
    family = max((start for start in FAMILIES if entry["family"].startswith(start)), key=len)
    alike = [name for name in FAMILIES[family] if size(name, entry["classes"], entry["input"][-1]) == entry["params"]]
    assert alike, f"none of {', '.join(FAMILIES[family])} has {entry['params']} parameters"
    return alike[0]


@lru_cache
def size(name: str, classes: int, pixels: int) -> int:
    """The number of parameters, of a network without numbers."""
    with torch.device("meta"):
        network = build(name, classes, image_size=pixels)
    return sum(parameter.numel() for parameter in network.parameters())


def built(entry: Mapping[str, Any], name: str) -> Any:
    return build(name, entry["classes"], image_size=entry["input"][-1]).double().eval()


def filled(entry: Mapping[str, Any], salt: int) -> tuple[Any, Rename]:
    """A golden model with its weights, and how its keys are named there."""
    name = name_of(entry)
    network = built(entry, name)
    rename = by_place(entry, network) if "vgg" in name else renaming(name)
    fill(network, salt, rename)
    return network, rename


def by_place(entry: Mapping[str, Any], network: Any) -> Rename:
    """For a VGG, of which ours counts convolutions and theirs also what lies between."""
    return dict(zip(network.state_dict(), (key for key, _ in entry["state_dict"]), strict=True)).__getitem__


def renaming(name: str) -> Rename:
    """From the keys of one of our networks to the golden ones."""
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
