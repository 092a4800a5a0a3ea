"""Our detectors compute what torchvision's do, with its names; taps are pre-activations; teachers share pixels."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from kdtable import models
from kdtable.models.detection.detector import Detector
from kdtable.models.names import of_task, weights_of
from tests.detection.small import two_images

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EVERY = frozenset({"levels", "taps", "class_logits", "anchors"})
SIZES = {"min_size": 50, "max_size": 64, "image_mean": MEAN, "image_std": STD}  # two images stay as they are


def network(name: str, classes: int = 3) -> Detector:
    torch.manual_seed(0)
    found = models.build(name, classes, mean=MEAN, std=STD, image_size=64)
    assert isinstance(found, Detector)
    return found


def theirs(name: str, classes: int) -> FasterRCNN | RetinaNet:
    if name.startswith("fasterrcnn"):
        return FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), classes + 1, **SIZES)
    extra = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    return RetinaNet(resnet_fpn_backbone(backbone_name="resnet18", weights=None, **extra), classes, **SIZES)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18", "retinanet_resnet18"])
def test_a_network_is_torchvisions(name: str) -> None:
    """Keys, detections and losses, to the bit, on images that need no resizing; all boxes are sampled."""
    own, other = network(name), theirs(name, 3)
    other.load_state_dict(own.state_dict())
    batch = two_images()
    batch = replace(batch, images=batch.images[1:], sizes=((50, 64),), index=batch.index[1:], draws=batch.draws[1:])
    boxes, labels = torch.tensor([[3.0, 4.0, 30.0, 40.0]]), torch.tensor([2])
    batch = replace(batch, boxes=(boxes,), labels=(labels,))
    image = [batch.images[0, :, :50, :64]]
    with torch.no_grad():
        own.eval()
        (found,) = own(batch, frozenset({"detections"})).detections
        (expected,) = other.eval()(image)
        assert torch.equal(found.boxes, expected["boxes"])
        assert torch.equal(found.scores, expected["scores"])
        assert torch.equal(found.labels + name.startswith("fasterrcnn"), expected["labels"])
        if name.startswith("fasterrcnn"):
            own.rpn.fg_bg_sampler.size = own.roi_heads.fg_bg_sampler.size = 10**6
            for heads in (other.rpn, other.roi_heads):
                heads.fg_bg_sampler.batch_size_per_image = 10**6
        losses = own.train()(batch, frozenset()).losses
        target = [{"boxes": boxes, "labels": labels + name.startswith("fasterrcnn")}]
        assert sorted(losses.values()) == sorted(other.train()(image, target).values())


@pytest.mark.parametrize("name", ["fasterrcnn_w8", "retinanet_w8", "fasterrcnn_resnet18"])
def test_taps_are_before_the_activation(name: str) -> None:
    """The ReLU works in place, so that a map that was not copied would have no negative value."""
    found = network(name)(two_images(), EVERY)
    strides = [64 // tap.shape[-1] for tap in found.taps]
    assert strides == [4, 8, 16, 32][: len(strides)]
    for tap in found.taps:
        assert tap.min() < 0
        assert tap.requires_grad or name == "fasterrcnn_resnet18"  # whose first stage is frozen
    found.taps[-1].sum().backward()


@pytest.mark.parametrize("name", ["fasterrcnn_w8", "retinanet_w8"])
def test_what_is_kept_changes_nothing(name: str) -> None:
    own = network(name)
    bare, full = own(two_images(), frozenset()), own(two_images(), EVERY)
    assert bare.losses.keys() == full.losses.keys()
    assert all(torch.equal(bare.losses[key], full.losses[key]) for key in bare.losses)
    assert (bare.levels, bare.taps, bare.anchors) == ((), (), ())
    levels = [len(level) for level in full.anchors]
    assert len(levels) == len(full.levels)
    if full.dense:
        assert full.class_logits.shape == (2, sum(levels), 3)
        assert full.labels.shape == (2, sum(levels))
        assert full.labels[1].eq(3).all()  # an image without boxes is background
        assert full.labels[0].eq(1).any()
    else:
        assert len(full.labels) == len(full.class_logits) == sum(map(len, full.boxes))
        assert set(full.labels.tolist()) == {0, 2}  # the column of class 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in own.modules())


def test_samples_depend_on_the_images_seeds_alone() -> None:
    own, batch = network("fasterrcnn_w8"), two_images()
    first = own(batch, frozenset())
    torch.manual_seed(77)
    again, other = own(batch, frozenset()), own(replace(batch, draws=batch.draws + 1), frozenset())
    assert all(torch.equal(one, two) for one, two in zip(first.boxes, again.boxes, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first.boxes, other.boxes, strict=True))


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18", "fasterrcnn_mobilenetv2", "retinanet_resnet18_mgd"])
def test_a_body_starts_from_a_classifiers_weights(name: str) -> None:
    own, classifier = network(name), models.build(weights_of(name), 10)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    own.start_from(classifier.state_dict())
    given = classifier.state_dict()
    for key, value in own.state_dict().items():
        inner = key.removeprefix("backbone.body.")
        source = given.get(inner, given.get(f"features.{inner}"))
        norm = own.get_submodule(key.rpartition(".")[0])
        taken = key != inner and source is not None and not isinstance(norm, torch.nn.GroupNorm)
        assert torch.equal(value, source if taken else before[key]), key


def test_what_is_frozen() -> None:
    """The stem and the first stage; MGD's student trains that stage, and the norms at the ends of all."""
    frozen = {name: network(name) for name in ("retinanet_resnet18", "retinanet_resnet18_mgd", "retinanet_resnet18_bn")}
    still = {name: [k for k, p in own.named_parameters() if not p.requires_grad] for name, own in frozen.items()}
    assert {key.split(".")[2] for key in still["retinanet_resnet18"]} == {"conv1", "layer1"}
    assert {key.split(".")[2] for key in still["retinanet_resnet18_mgd"]} == {"conv1"}
    assert still["retinanet_resnet18_bn"] == []
    kinds = [sum(isinstance(m, FrozenBatchNorm2d) for m in own.modules()) for own in frozen.values()]
    assert kinds == [20, 12, 0]


def test_every_detector_has_a_name() -> None:
    found = of_task("detection")
    assert {"fasterrcnn_w8", "fasterrcnn_resnet101", "fasterrcnn_mobilenetv2", "retinanet_resnet50"} <= set(found)
    assert not set(found) & set(of_task("classification"))
