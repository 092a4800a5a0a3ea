"""torchvision's weights of detectors become those of COCO's 80 categories, and compute the same."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from kdtable.data.spec import BUILT_IN
from kdtable.planning.teachers import published_data
from kdtable.teachers import coco, weights
from kdtable.teachers.manifest import lookup
from kdtable.teachers.weights import load_into, read_weights
from kdtable.training.build import build_teacher

KINDS = ("fasterrcnn", "retinanet")
HUB = {
    "fasterrcnn_resnet50": detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    "retinanet_resnet50": detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
}


@pytest.mark.parametrize("network", HUB)
def test_the_manifest_says_what_torchvision_says(network: str) -> None:
    hub, entry = HUB[network], lookup("coco", network)
    assert entry is not None
    (source,) = entry.sources
    assert (source.url, entry.claimed_top1) == (hub.url, hub.meta["_metrics"]["COCO-val2017"]["box_map"])
    assert source.url.endswith(f"-{entry.sha256}.pth")


def theirs(kind: str) -> nn.Module:
    """torchvision's detector of 91 classes as it builds it for these weights, but on a ResNet-18."""
    torch.manual_seed(0)
    if kind == "fasterrcnn":
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d)
        found: nn.Module = detection.FasterRCNN(backbone, coco.IDS)
    else:
        levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, **levels)
        found = detection.RetinaNet(backbone, coco.IDS)
    for module in found.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(1e-4, 1.0)  # small ones, where the epsilon counts
            module.running_mean.normal_()
    overwrite_eps(found, 0.0)
    return found.eval()


def as_in_the_files(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the names of the modules of 2020."""

    def then(key: str) -> str:
        key = re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", key).replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        return re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)

    old = {then(key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    return old


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_they_compute_stays(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, entry = theirs(kind), lookup("coco", f"{kind}_resnet50")
    assert entry is not None
    torch.save(as_in_the_files(source.state_dict()), tmp_path / "file.pth")
    monkeypatch.setattr(weights, "by_checksum", lambda _: entry)
    found = read_weights(tmp_path / "file.pth")
    assert (found.mean, found.std, found.claimed_top1) == (entry.mean, entry.std, entry.claimed_top1)
    ours = build_teacher(f"{kind}_resnet18", 80, entry.mean, entry.std)
    load_into(ours, found, name=f"{kind}_resnet18")

    pixels = torch.randn(1, 3, 64, 64)
    maps, own = source.backbone(pixels), ours.backbone(pixels)
    for key, level in maps.items():
        torch.testing.assert_close(own[key], level, rtol=1e-4, atol=1e-4 * float(level.abs().max()))
    ids = list(coco.categories())
    if kind == "retinanet":
        wanted, given = source.head(list(maps.values())), ours.head(list(maps.values()))
        torch.testing.assert_close(given["cls_logits"], wanted["cls_logits"][..., ids])
        torch.testing.assert_close(given["bbox_regression"], wanted["bbox_regression"])
        return
    boxes, sizes = [torch.tensor([[4.0, 4.0, 40.0, 30.0], [0.0, 8.0, 60.0, 60.0]])], [(64, 64)]
    heads = source.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, sizes)))
    torch.testing.assert_close(ours.judge(list(maps.values()), boxes, sizes), logits[:, [0, *ids]])
    given = ours.roi_heads.box_predictor.bbox_pred.weight.unflatten(0, (81, 4))
    assert torch.equal(given, heads.box_predictor.bbox_pred.weight.unflatten(0, (91, 4))[[0, *ids]])
    assert deltas.shape == (2, 4 * coco.IDS)


def test_categories_are_cocos() -> None:
    known = coco.categories()
    assert len(known) == 80
    assert sorted(set(range(1, 91)) - known.keys()) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert (known[1], known[13], known[90]) == ("person", "stop sign", "toothbrush")


def test_they_teach_where_the_categories_are_the_same() -> None:
    names = tuple(coco.categories().values())
    mine = replace(BUILT_IN["shapes"], kind="coco", key="mine-1", path=Path("mine"), classes=names)
    assert published_data(mine) == "coco"
    assert published_data(replace(mine, classes=(*names[:-1], "comb"))) == "mine-1"
    assert published_data(replace(mine, classes=names[:-1])) == "mine-1"
