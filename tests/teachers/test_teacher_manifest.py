import subprocess
import sys

import pytest

from kdtable.errors import BadRequest
from kdtable.models.names import NETWORKS
from kdtable.teachers.manifest import Source, by_checksum, find, lookup, published

# Documented by torchvision.
ON_REQUEST = {
    "tv_resnet18": 69.758,
    "tv_resnet34": 73.314,
    "tv_resnet50": 76.13,
    "tv_resnet101": 77.374,
    "tv_resnet152": 78.312,
    "tv_mobilenetv2": 71.878,
    "tv_shufflenetv2": 69.362,
    "moco_resnet50": 67.7,  # of a linear probe
}

# The teacher row of the CRD benchmark's table, and 100 less the errors printed for the CIFAR-10 networks.
CLAIMS = {
    "cifar100/wrn_40_2": 75.61,
    "cifar100/resnet56": 72.34,
    "cifar100/resnet110": 74.31,
    "cifar100/resnet32x4": 79.42,
    "cifar100/vgg13": 74.64,
    "cifar100/cifar_resnet50": 79.34,
    "cifar10/resnet20_a": 100 - 8.27,
    "cifar10/resnet32_a": 100 - 7.37,
    "cifar10/resnet44_a": 100 - 6.90,
    "cifar10/resnet56_a": 100 - 6.61,
    "cifar10/resnet110_a": 100 - 6.32,
    **{f"imagenet/{network}": claim for network, claim in ON_REQUEST.items()},
    "coco/fasterrcnn_resnet50": 37.0,
    "coco/retinanet_resnet50": 36.4,
}


def test_the_manifest_has_exactly_these_claims():
    assert {name: entry.claimed_top1 for name, entry in published().items()} == pytest.approx(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_an_entry_is_complete(name):
    entry = published()[name]
    assert name == f"{entry.dataset}/{entry.network}"
    assert entry.network in NETWORKS
    assert entry.num_classes == {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "coco": 80}[entry.dataset]
    assert entry.mirror_path == name + entry.suffix
    assert len(entry.mean) == len(entry.std) == 3
    assert entry.sources
    assert entry.paper
    assert entry.citation


@pytest.mark.parametrize(
    ("network", "file"),
    [
        ("wrn_40_2", "wrn_40_2_vanilla"),
        ("resnet56", "resnet56_vanilla"),
        ("resnet110", "resnet110_vanilla"),
        ("resnet32x4", "resnet32x4_vanilla"),
        ("vgg13", "vgg13_vanilla"),
        ("cifar_resnet50", "ResNet50_vanilla"),
    ],
)
def test_crd_teachers_come_from_their_host_and_then_from_the_archive(network, file):
    entry = lookup("cifar100", network)
    assert entry.sha256 is None
    assert entry.mean == (0.5071, 0.4867, 0.4408)
    assert entry.std == (0.2675, 0.2565, 0.2761)
    first, second = entry.sources
    assert first == Source(f"http://shape2prog.csail.mit.edu/repo/{file}/ckpt_epoch_240.pth")
    assert second.url.endswith("/mdistiller/releases/download/checkpoints/cifar_teachers.tar")
    assert second.member == f"{file}/ckpt_epoch_240.pth"


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar10_teachers_carry_their_checksum_in_the_file_name(depth):
    entry = lookup("cifar10", f"resnet{depth}_a")
    (source,) = entry.sources
    assert source.url.endswith(f"/pretrained_models/resnet{depth}-{entry.sha256}.th")
    assert len(entry.sha256) == 8
    assert entry.mean == (0.485, 0.456, 0.406)
    assert entry.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (["cifar100/resnet56"], ["cifar100/resnet56"]),
        (["res56", "resnet56"], ["cifar100/resnet56"]),
        (["WRN-40-2"], ["cifar100/wrn_40_2"]),
        (["ResNet50", "resnet20-a"], ["cifar100/cifar_resnet50", "cifar10/resnet20_a"]),
        (["cifar100/res110"], ["cifar100/resnet110"]),
        (["tv-resnet34", "imagenet/tv_resnet50"], ["imagenet/tv_resnet34", "imagenet/tv_resnet50"]),
        ([], [name for name in CLAIMS if not name.startswith(("imagenet/", "coco/"))]),
    ],
)
def test_find(asked, meant):
    assert [entry.name for entry in find(asked)] == meant


@pytest.mark.parametrize("name", ["cifar100/resnet57", "resnet8", "cifar10/resnet56", "nonsense", "cifar100/"])
def test_find_refuses_what_is_not_published(name):
    with pytest.raises(
        BadRequest, match=r"unknown published teacher .*(did you mean|use one of) (cifar10|imagenet/tv_resnet)"
    ):
        find([name])


def test_a_file_is_recognised_by_its_checksum():
    assert by_checksum("4bfd9763" + "0" * 56) is lookup("cifar10", "resnet56_a")
    assert by_checksum("0" * 64) is None
    assert lookup("cifar10", "resnet56") is None


def test_the_manifest_needs_no_torch():
    code = "import sys, kdtable.teachers.manifest as m; m.find(['res56']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
