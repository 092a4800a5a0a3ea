"""Option-A networks against the checkpoints that were published for them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdtable.models import build
from kdtable.models.network import Network

SHARED = Path(__file__).parents[2].parent / "shared"
IMAGES = SHARED / "data" / "cifar10_excerpt.npz"
#: The file, and its accuracy on the test images of the excerpt.
TEACHERS = {
    "resnet20_a": ("resnet20-12fca82f.th", 0.9164),
    "resnet32_a": ("resnet32-d509ac18.th", 0.9282),
    "resnet44_a": ("resnet44-014dd654.th", 0.9341),
    "resnet56_a": ("resnet56-4bfd9763.th", 0.9272),
}
PARAMETERS = {
    "resnet20_a": 269_722,
    "resnet32_a": 464_154,
    "resnet44_a": 658_586,
    "resnet56_a": 853_018,
    "resnet110_a": 1_727_962,
}


def teacher(name: str) -> Network:
    path = SHARED / "teachers" / TEACHERS[name][0]
    if not path.exists():
        pytest.skip(f"no published checkpoint {path.name} in a folder shared/teachers beside the repository")
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith(path.stem.rpartition("-")[2])
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = build(name, 10, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=True)
    return network.eval()


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_size(name: str, expected: int) -> None:
    assert sum(p.numel() for p in build(name, 10).parameters()) == expected


@pytest.mark.parametrize("name", TEACHERS)
def test_loads_the_published_checkpoint(name: str) -> None:
    teacher(name)


@pytest.mark.parametrize("name", ["resnet20_a", "resnet56_a"])
def test_accuracy_of_the_published_checkpoint(name: str) -> None:
    network = teacher(name)
    if not IMAGES.exists():
        pytest.skip(f"no {IMAGES.name} in a folder shared/data beside the repository")
    with np.load(IMAGES) as data:
        images = torch.from_numpy(data["test_images"]).float() / 255
        labels = torch.from_numpy(data["test_labels"])
    with torch.no_grad():
        right = [
            (network(x, keep=frozenset()).logits.argmax(1) == y)
            for x, y in zip(images.split(128), labels.split(128), strict=True)
        ]
    # one image more or less may be decided by rounding
    assert torch.cat(right).double().mean().item() == pytest.approx(TEACHERS[name][1], abs=1.5 / len(labels))


def test_the_shortcut_pads_half_on_each_side() -> None:
    network = build("resnet20_a", 10).double().eval()
    x = torch.randn(2, 16, 7, 6, dtype=torch.float64)
    padded = network.layer2[0].downsample(x)
    assert padded.shape == (2, 32, 4, 3)
    assert torch.equal(padded[:, 8:24], x[:, :, ::2, ::2])
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()
