"""torchvision's own weights of detectors, which know COCO's 91 category ids, as weights for its 80 categories.

Eleven ids have no category: 0, and ten between the others. Training made their logits small and nothing else. They are
left out, so that a Faster R-CNN's softmax runs over background and categories alone. All other numbers stay.

These weights are used without the epsilon of frozen batch norms (torchvision's ``overwrite_eps``). Our networks have
it, so that the scales take it up. The files have the names that torchvision's modules had when they were written.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Final

import torch
from torch import Tensor

#: Key of the data set, and the epsilon of torchvision's ``FrozenBatchNorm2d``.
DATASET: Final = "coco"
EPSILON: Final = 1e-5
#: COCO's category ids, 0 for the background among them.
IDS: Final = 91
#: Names in these files, and what torchvision calls the same layers now.
_RENAMED: Final = (
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
)
#: The convolutions of RetinaNet's head, which stood between their ReLUs.
_OF_HEAD: Final = re.compile(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)")


@cache
def categories() -> dict[int, str]:
    """Names of the 80 categories by COCO's id, in the order of kdtable's labels."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {key: name for key, name in enumerate(names) if name not in ("__background__", "N/A")}


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of torchvision's Faster R-CNN or RetinaNet of 91 classes as that of kdtable's of 80."""
    tensors = {_renamed(key): tensor for key, tensor in tensors.items()}
    found = {key: _head(key, tensor) for key, tensor in tensors.items()}
    for key, variance in tensors.items():
        if key.endswith(".running_var"):
            weight = key.replace("running_var", "weight")
            scale = ((variance.double() + EPSILON) / variance.double()).sqrt()
            found[weight] = (tensors[weight].double() * scale).to(variance.dtype)
    return found


def _renamed(key: str) -> str:
    for pattern, now in _RENAMED:
        if pattern.fullmatch(key):
            return pattern.sub(now, key)
    if match := _OF_HEAD.fullmatch(key):
        return f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
    return key


def _head(key: str, tensor: Tensor) -> Tensor:
    """Of the layers that have rows for each class, the rows of the categories."""
    known = list(categories())
    if ".cls_score." in key:  # background and classes
        return _rows(tensor, 1, [0, *known])
    if ".bbox_pred." in key and "roi_heads" in key:  # four numbers for each
        return _rows(tensor, 4, [0, *known])
    if ".cls_logits." in key and "classification_head" in key:  # for each anchor, classes alone
        anchors = tensor.reshape(-1, IDS, *tensor.shape[1:])
        return anchors[:, torch.tensor(known, device=tensor.device)].flatten(0, 1)
    return tensor


def _rows(tensor: Tensor, numbers: int, classes: list[int]) -> Tensor:
    of_classes = tensor.reshape(IDS, numbers, *tensor.shape[1:])
    return of_classes[torch.tensor(classes, device=tensor.device)].flatten(0, 1)
