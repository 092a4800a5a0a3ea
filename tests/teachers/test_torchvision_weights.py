import subprocess
import sys

import pytest

from kdtable import models
from kdtable.teachers.manifest import lookup
from kdtable.teachers.torchvision_weights import NETWORKS, hub_weights


@pytest.mark.parametrize("network", [name for name in NETWORKS if name.startswith("tv_")])
def test_the_manifest_says_what_torchvision_says(network: str) -> None:
    hub, entry = hub_weights(network), lookup("imagenet", network)
    assert hub is not None
    assert entry is not None
    (source,) = entry.sources
    assert (source.url, entry.sha256, entry.claimed_top1) == (hub.url, hub.sha256, hub.top1)
    assert hub.url.endswith(f"-{hub.sha256}.pth")
    assert hub.top1 < hub.top5 < 100


@pytest.mark.parametrize("network", [name for name in NETWORKS if "resnet" not in name])
def test_the_weights_are_of_as_many_parameters_as_the_network(network: str) -> None:
    hub = hub_weights(network)
    assert hub is not None
    assert sum(p.numel() for p in models.build(network, 1000).parameters()) == hub.parameters


def test_mgd_networks_take_torchvisions_weights() -> None:
    assert hub_weights("mgd_mobilenetv2") == hub_weights("tv_mobilenetv2")
    assert hub_weights("mgd_shufflenetv2") == hub_weights("tv_shufflenetv2")


def test_torchvision_has_nothing_for_other_networks() -> None:
    assert hub_weights("resnet8") is None
    assert hub_weights("cd_resnet50") is None


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, kdtable.teachers.torchvision_weights; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
