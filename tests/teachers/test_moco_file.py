"""MoCo's published encoder: a checkpoint of that form is fetched, checked by its MD5, and read."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from kdtable import models
from kdtable.errors import BadRequest
from kdtable.files.pins import read_pins
from kdtable.models.moco_resnet import MoCoResNet
from kdtable.models.network import Network
from kdtable.teachers.fetch import FetchFailed
from kdtable.teachers.manifest import Published, Source, find, lookup
from kdtable.teachers.weights import load_into, read_weights
from tests.teachers.teacher_site import Case, Reply, as_file, teacher

PATH = "/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar"


class Encoder(nn.Module):
    """A trunk of one layer, with MoCo's head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def of_moco(query: nn.Module, key: nn.Module) -> bytes:
    """What MoCo's script saves: both encoders and the queue, wrapped for several devices."""
    state = {"module.queue": torch.rand(2, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    for name, encoder in (("encoder_q", query), ("encoder_k", key)):
        state |= {f"module.{name}.{entry}": value for entry, value in encoder.state_dict().items()}
    return as_file({"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}})


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def published(case: Case, content: bytes, md5: str) -> Published:
    return replace(teacher(case.site.answers(PATH, Reply(content))), md5=md5)


def verify(path: Path) -> str | None:
    load_into(Encoder(), read_weights(path), name="encoder")
    return None


@pytest.fixture
def checkpoint() -> bytes:
    torch.manual_seed(0)
    return of_moco(Encoder(), Encoder())


def test_it_is_fetched_by_its_md5_and_the_encoder_that_learned_is_read(case: Case, checkpoint: bytes) -> None:
    wanted = published(case, checkpoint, md5_of(checkpoint)[:8])
    path = case.get(wanted, verify=verify)
    assert path.read_bytes() == checkpoint
    assert read_pins(case.folder)["cifar100/resnet56"].sha256 == hashlib.sha256(checkpoint).hexdigest()
    torch.manual_seed(0)
    query, read = Encoder(), Encoder()
    load_into(read, read_weights(path), name="encoder")
    assert all(torch.equal(read.state_dict()[name], value) for name, value in query.state_dict().items())


def test_a_file_of_another_md5_is_refused(case: Case, checkpoint: bytes) -> None:
    with pytest.raises(FetchFailed, match=f"its MD5 is {md5_of(checkpoint)}, but 59fd9945 is published"):
        case.get(published(case, checkpoint, "59fd9945"), verify=verify)
    assert case.left() == []


@pytest.mark.parametrize("right", [True, False])
def test_a_file_that_lies_there_is_compared_with_it(right: bool, case: Case, checkpoint: bytes) -> None:
    case.final.parent.mkdir(parents=True)
    case.final.write_bytes(checkpoint)
    wanted, notices = published(case, checkpoint, md5_of(checkpoint)[:8] if right else "59fd9945"), []
    if right:
        assert case.get(wanted, verify=verify, notice=notices.append) == case.final
        assert (notices, case.site.requests) == ([], [])
    else:
        with pytest.raises(BadRequest, match="not as published: its MD5 is"):
            case.get(wanted, verify=verify)
        assert case.final.read_bytes() == checkpoint


def test_the_entry() -> None:
    entry = lookup("imagenet", "moco_resnet50")
    assert entry is not None
    folder = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints"
    assert entry.sources == (Source(f"{folder}/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar"),)
    assert (entry.md5, entry.sha256, entry.on_request) == ("59fd9945", None, True)
    assert find(["MoCo-ResNet50"]) == [entry]


def test_the_network_has_the_checkpoints_keys() -> None:
    with torch.device("meta"):
        own, theirs = models.build("moco_resnet50", 1000).state_dict(), resnet50().state_dict()
    shapes = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    head = {"fc.0.weight": (2048, 2048), "fc.0.bias": (2048,), "fc.2.weight": (128, 2048), "fc.2.bias": (128,)}
    assert {key: value.shape for key, value in own.items()} == shapes | head


def test_its_vectors_are_the_heads_and_its_maps_the_trunks() -> None:
    torch.manual_seed(0)
    network: Network = MoCoResNet(num_classes=10, depth=18).eval()
    with torch.no_grad():
        out = network(torch.rand(2, 3, 32, 32))
    assert out.last is None
    assert [tuple(tap.shape[1:]) for tap in out.preacts] == [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]
    assert all(torch.equal(tap.relu(), stage) for tap, stage in zip(out.preacts, out.stages, strict=True))
    pooled = out.stages[-1].mean(dim=(2, 3))
    assert out.embedding is not None
    assert torch.allclose(out.embedding, network.get_submodule("fc")(pooled), atol=1e-6)
    assert out.embedding.shape == (2, 128)
    assert not network.classifies
